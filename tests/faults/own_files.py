"""Made files for the shipped configs of tasks that read formats of their own.

By the config's name or the task's class: what writes train, validation and test files into a
directory and gives the options that name them, and whether the task needs a causal bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.files_events import write_events
from faults.files_generation import write_for_config
from faults.files_matching import write_gaps, write_pairs
from faults.files_qa import write_qa
from faults.files_relations import write_relations
from faults.files_tagging import write_characters, write_roles, write_tagged, write_universal

OWN_FILES: dict[str, tuple[Callable[[Path], dict[str, Any]], bool]] = {
    "Cloze": (write_gaps, False),
    "EventTriggers": (write_events, False),
    "ExtractiveQA": (write_qa, False),
    "Generation": (write_for_config, True),
    "Matching": (write_pairs, False),
    "RelationExtraction": (write_relations, False),
    "SemanticRoles": (write_roles, False),
    "Tagging": (write_tagged, False),
    "ner_zh": (write_characters, False),
    "pos": (write_universal, False),
}
