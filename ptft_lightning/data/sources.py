"""What a user names (files, globs, folders, URLs, hub data sets) to the files themselves."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from pathlib import Path

from fsspec.core import url_to_fs

from ptft_lightning.data.streams import COMPRESSED, bare_name, is_url
from ptft_lightning.errors import UserError

LINES = (".txt", ".jsonl")
TABLES = (".csv", ".tsv")
PARQUET = ".parquet"
HUB = "hub:"
KNOWN = f"{', '.join((*LINES, *TABLES))}, one of these with {' or '.join(COMPRESSED)}, or {PARQUET}"


def suffix_of(path: str) -> str:
    """The ending that tells a file's format.

    Raises:
        UserError: a format we do not read.
    """
    suffix = _known_suffix(path)
    if suffix is None:
        raise UserError(f"cannot read '{path}': expected a name ending in {KNOWN}")
    return suffix


def _known_suffix(path: str) -> str | None:
    if path.endswith(PARQUET):
        return PARQUET
    return next((s for s in (*LINES, *TABLES) if bare_name(path).endswith(s)), None)


def expand_sources(entries: list[str]) -> list[str]:
    """The files that `entries` name, in their order; folders and globs sorted, known formats only.

    What a folder or glob holds beside is said once, but for hidden files. Names of files come back
    as they are, and a folder or glob adds no file that is there already.

    Raises:
        UserError: a folder or glob without a file to read.
    """
    files: list[str] = []
    seen: set[str] = set()
    for entry in entries:
        found = None if entry.startswith(HUB) else _listed(entry)
        if found is None:
            files.append(entry)
            seen.add(_place(entry))
            continue
        known = [path for path in found if _known_suffix(path)]
        if not known:
            raise UserError(
                f"no file to read in '{entry}' ({len(found)} others): expected names ending in "
                f"{KNOWN}"
            )
        _say_ignored(entry, [path for path in found if not _known_suffix(path)])
        files += [path for path in known if _place(path) not in seen]
        seen.update(map(_place, known))
    return files


def _listed(entry: str) -> list[str] | None:
    """All files in a folder or of a glob, sorted; None where the entry is a file's name."""
    pattern = glob.has_magic(entry)
    if "::" in entry:  # a chain of URLs, such as simplecache::s3://..., names one file
        return None
    if not is_url(entry):
        if os.path.isdir(entry):
            return sorted(str(p) for p in Path(entry).rglob("*") if _is_visible(p, entry))
        if not pattern or os.path.exists(entry):
            return None
        return sorted(p for p in glob.glob(entry, recursive=True) if os.path.isfile(p))
    try:
        system, place = url_to_fs(entry)
        if pattern and not system.exists(place):
            found = [name for name, i in system.glob(place, detail=True).items() if _is_file(i)]
        elif system.isdir(place):
            found = system.find(place)
        else:
            return None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot list '{entry}': {error}") from error
    return sorted(system.unstrip_protocol(name) for name in found)


def _place(path: str) -> str:
    """The same for all ways to write a local path."""
    return path if is_url(path) or path.startswith(HUB) else os.path.abspath(path)


def _is_visible(path: Path, folder: str) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden


def _is_file(info: dict[str, object]) -> bool:
    return info["type"] == "file"


def _say_ignored(entry: str, ignored: list[str]) -> None:
    if ignored:
        endings = Counter(os.path.splitext(path)[1] or "no ending" for path in ignored)
        kinds = ", ".join(f"{n} {ending}" for ending, n in endings.most_common(5))
        print(
            f"'{entry}': {len(ignored)} files are not read ({kinds}), such as {ignored[0]}",
            file=sys.stderr,
        )
