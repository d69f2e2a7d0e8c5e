"""A written folder against the bundle it was made from, through transformers; knows no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ptft_lightning.data.batch import Batch, build_batch
from ptft_lightning.data.examples import Encoded
from ptft_lightning.data.tokenizer import Tokenizer
from ptft_lightning.errors import UserError
from ptft_lightning.handoff.bundle import Bundle
from ptft_lightning.interop.families import build_parts
from ptft_lightning.objectives.base import PretrainHead
from ptft_lightning.objectives.replaced import ALONE
from ptft_lightning.objectives.sentence_pairs import NextSentence
from ptft_lightning.tasks.classification import Classification
from ptft_lightning.tasks.question_answering import SpanHead
from ptft_lightning.tasks.word_head import WordHead

TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order
SAMPLES = ("The quick brown fox jumps over the lazy dog.", "语言模型读文字。", "Été: 3,141 + 2 = ?")
AUTO = {
    None: "AutoModel",
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "next_sentence": "AutoModelForPreTraining",
    ALONE: "AutoModelForPreTraining",
    "classification": "AutoModelForSequenceClassification",
    "tagging": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}


def compare_with_transformers(bundle: Bundle, folder: Path) -> float:
    """The largest difference of logits between the bundle's model and the folder's, on rows of
    random tokens and of text, some padded; both in float32.

    Raises:
        UserError: logits or token ids differ.
    """
    import transformers

    _compare_tokens(bundle.tokenizer, folder, transformers.AutoTokenizer)
    head = bundle.config["head"]["name"]
    auto = getattr(transformers, AUTO[head])
    theirs = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    parts: Any = build_parts(bundle.config).eval()
    weights = {name: bundle.tensor(name).float() for name in parts.state_dict()}
    parts.load_state_dict(weights, assign=True)
    worst = 0.0
    for rows in (random_rows(bundle), _text_rows(bundle)):
        batch, real = _batch(rows, bundle)
        with torch.no_grad():
            mine = _logits(parts, batch, head)
            out = theirs(input_ids=batch.tokens, attention_mask=real.long())
        for ours, wanted in zip(mine, _their_logits(out, head), strict=True):
            some = real if wanted.ndim == 3 else slice(None)
            difference = float((ours[some] - wanted[some]).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
                raise UserError(
                    f"transformers {transformers.__version__} computes other logits from the "
                    f"export (by up to {difference:.3g}): it is not kept, please report this"
                )
            worst = max(worst, difference)
    return worst


def _their_logits(out: Any, head: str | None) -> list[Tensor]:
    if head == ALONE:
        return [out.logits[..., None]]
    if "seq_relationship_logits" in out:
        return [out.prediction_logits, out.seq_relationship_logits]
    if "start_logits" in out:
        return [torch.stack([out.start_logits, out.end_logits], -1)]
    return [out.logits if "logits" in out else out.last_hidden_state]


def _compare_tokens(tokenizer: Tokenizer, folder: Path, auto: Any) -> None:
    theirs = auto.from_pretrained(folder)
    for text, mine in zip(SAMPLES, tokenizer.encode([*SAMPLES]), strict=True):
        if (found := theirs(text, add_special_tokens=False)["input_ids"]) != mine:
            raise UserError(
                f"transformers' tokenizer reads '{text}' from the export as {found}, ours as "
                f"{mine}: it is not kept, please report this"
            )


def random_rows(bundle: Bundle) -> list[list[int]]:
    """Rows so much longer than a window that they are cut, where the model reads as many."""
    shape = bundle.config["backbone"]
    window = shape["config"]["window"]
    wide = 48 if window is None else min(1024, 6 * max(window, 64) + 8)
    length = min(shape["config"]["max_length"], wide)
    ordinary = np.setdiff1d(np.arange(shape["vocab_size"]), bundle.tokenizer.specials)
    rng = np.random.default_rng(0)
    return [rng.choice(ordinary, size).tolist() for size in (length, length // 2 + 1, 1)]


def _text_rows(bundle: Bundle) -> list[list[int]]:
    longest = bundle.config["backbone"]["config"]["max_length"]
    encoded = bundle.tokenizer.encode([*SAMPLES])
    return [bundle.tokenizer.frame(ids)[:longest] for ids in encoded]


def token_logits(head: nn.Module, hidden: Tensor) -> Tensor | None:
    """(B, T, dim) -> (B, T, outputs) of a head that is a linear layer on every token; None of
    another."""
    if isinstance(head, WordHead):
        return cast(Tensor, head.classifier(hidden)).float()
    if isinstance(head, SpanHead):
        return cast(Tensor, head.outputs(hidden)).float()
    return None


def _batch(rows: list[list[int]], bundle: Bundle) -> tuple[Batch, Tensor]:
    """Padded on the right; with the targets of a classification, labels unknown."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(real.shape, bundle.tokenizer.pad, np.int64)
    tokens[real] = np.concatenate(rows)
    numbers = np.arange(len(rows))
    packed = [Encoded(row, [0] * len(row), False) for row in rows]
    targets = Classification().targets(packed, numbers, np.zeros_like(numbers))
    batch = build_batch(tokens, real.astype(np.int64), numbers, targets, len(rows))
    return batch, torch.from_numpy(real)


def _logits(parts: Any, batch: Batch, head: str | None) -> list[Tensor]:
    hidden: Tensor = parts["backbone"](batch.tokens, batch.documents, batch.positions)
    if head is None:
        return [hidden]
    if head == ALONE:  # one a token
        return [parts["head"].detect(hidden)[..., None]]
    if isinstance(parts["head"], PretrainHead):
        logits = parts["head"].logits(hidden, parts["backbone"].embedding.weight)
        pairs = head == NextSentence.name
        return [logits, *([cast(Any, parts["head"]).pair_logits(hidden[:, 0])] if pairs else [])]
    if (each := token_logits(parts["head"], hidden)) is not None:
        return [each]
    scores = parts["head"](hidden, batch).scores
    assert isinstance(scores, Tensor)
    return [scores]
