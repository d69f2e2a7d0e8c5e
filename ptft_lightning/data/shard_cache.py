"""Shards of a store behind a URL, kept in a directory of bounded size; knows no order of samples.

All processes of a host share the directory: a shard is fetched by the one that locks it first, and
the others wait. A shard whose files have their names is whole and has its checksum. What was not
used for longest makes room; a map of a removed file stays valid, so nobody need be asked.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zlib import crc32

from fsspec.core import url_to_fs

from ptft_lightning.data.cache_config import CacheConfig
from ptft_lightning.data.manifest import Manifest, Shard
from ptft_lightning.data.module import say
from ptft_lightning.data.remote import Incomplete, persistently
from ptft_lightning.data.token_store import shard_checksum
from ptft_lightning.errors import UserError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LOCKS = 64
NPY_HEADER = 128
ABANDONED_S = 3600.0  # a download that has stood still for so long was killed


def shard_bytes(manifest: Manifest, shard: Shard) -> int:
    """Size of a shard's files."""
    width = 2 if manifest.dtype == "uint16" else 4
    marks = (len(manifest.arrays) - 2) * -(-shard.tokens // 8)
    headers = NPY_HEADER * len(manifest.arrays)
    return width * shard.tokens + 8 * shard.documents + marks + headers


def open_cache(url: str, manifest: Manifest, config: CacheConfig | None) -> ShardCache:
    """The directory of a store, made where it is not there.

    Raises:
        UserError: it cannot be written.
    """
    config = config or CacheConfig()
    try:
        folder = Path(config.directory).expanduser() / manifest.fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "a"):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: whoever this is has no home
        raise UserError(
            f"data.cache.directory '{config.directory}' cannot be written ({error}): name another"
        ) from error
    return ShardCache(url.rstrip("/"), manifest, folder, int(config.gigabytes * 1e9))


class ShardCache:
    """The shards of one store that are here."""

    def __init__(self, url: str, manifest: Manifest, folder: Path, limit: int) -> None:
        self.url, self.kinds, self.folder, self.limit = url, manifest.arrays, folder, limit
        self.manifest = manifest

    def check_room(self, window: int) -> None:
        """Refuse a limit below two windows of shards: one in use and the next one on its way.

        Raises:
            UserError: naming what it takes.
        """
        sizes = sorted((shard_bytes(self.manifest, s) for s in self.manifest.train), reverse=True)
        if (needed := sum(sizes[: 2 * window])) > self.limit:
            raise UserError(
                f"data.cache.gigabytes is {self.limit / 1e9:g}, two windows of {window} shards of "
                f"'{self.url}' take {math.ceil(needed / 1e6) / 1e3:g}: give that much, or a "
                "smaller data.window"
            )

    def has(self, shard: Shard) -> bool:
        """Whether a shard is here."""
        return all(self._file(shard, kind).is_file() for kind in self.kinds)

    def fetch(self, shard: Shard) -> Path:
        """The directory where the shard's files are, fetched if need be.

        Raises:
            UserError: it cannot be read, is not what the manifest says, or finds no room.
        """
        if not self.has(shard):
            # Few files for many shards: two that share one wait for each other, no more.
            with self._locked(f".lock-{crc32(shard.name.encode()) % LOCKS}"):
                if not self.has(shard):
                    self._make_room(shard)
                    self._download(shard)
        try:
            os.utime(self._file(shard, self.kinds[0]))  # used now
        except FileNotFoundError:  # made room for another in this very moment
            return self.fetch(shard)
        return self.folder

    def forget(self, shard: Shard) -> None:
        """Remove a shard that cannot be read, so that it is fetched again."""
        with self._locked(".lock"):
            for kind in self.kinds:
                self._file(shard, kind).unlink(missing_ok=True)

    def _file(self, shard: Shard, kind: str) -> Path:
        return self.folder / f"{shard.name}.{kind}.npy"

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.folder / name, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:  # to close it is not enough: a worker forked meanwhile holds it, too
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _download(self, shard: Shard) -> None:
        """Files under another name first, which are renamed together when they are right."""
        coming = self.folder / f".{shard.name}.coming"
        what = f"shard '{shard.name}' of '{self.url}'"
        for last in (False, True):
            persistently(what, lambda: self._get(shard, coming))
            if shard_checksum(coming, shard, self.kinds) == shard.checksum:
                break
            if last:
                raise UserError(
                    f"{what} does not match its checksum, twice: it was changed or damaged there; "
                    "copy it again"
                )
            say(f"{what} does not match its checksum: fetching it once more")
        for kind in self.kinds:
            name = self._file(shard, kind).name
            with open(coming / name, "rb") as stream:
                os.fsync(stream)  # a name must mean a whole file, after a power cut too
            os.replace(coming / name, self._file(shard, kind))
        shutil.rmtree(coming, ignore_errors=True)

    def _get(self, shard: Shard, coming: Path) -> None:
        shutil.rmtree(coming, ignore_errors=True)  # of a process that was killed
        try:
            coming.mkdir()
            for kind in self.kinds:
                name = self._file(shard, kind).name
                system, path = url_to_fs(f"{self.url}/{name}")
                system.get_file(path, str(coming / name))
                if (coming / name).stat().st_size != system.size(path):
                    raise Incomplete(f"{name} ended early")
        except OSError as error:
            if error.errno in NO_ROOM:
                raise UserError(
                    f"no room for shard '{shard.name}' in '{self.folder}' ({error.strerror}): "
                    "free some, or name another data.cache.directory"
                ) from error
            raise

    def _make_room(self, shard: Shard) -> None:
        """Remove what was not used for longest until the shard fits."""
        with self._locked(".lock"):
            used: dict[str, tuple[float, int]] = {}
            for file in self.folder.glob("[!.]*.npy"):
                name = file.name.split(".")[0]
                try:
                    stat = file.stat()
                except FileNotFoundError:  # forgotten
                    continue
                before = used.get(name, (0.0, 0))
                used[name] = (max(before[0], stat.st_mtime), before[1] + stat.st_size)
            free = self.limit - sum(size for _, size in used.values())
            for name, (_, size) in sorted(used.items(), key=lambda item: item[1]):
                if free >= shard_bytes(self.manifest, shard):
                    break
                for file in self.folder.glob(f"{name}.*.npy"):
                    file.unlink(missing_ok=True)
                free += size
            for left in self.folder.glob(".*.coming"):
                with suppress(FileNotFoundError):  # it arrived just now
                    if time.time() - left.stat().st_mtime > ABANDONED_S:
                        shutil.rmtree(left, ignore_errors=True)
