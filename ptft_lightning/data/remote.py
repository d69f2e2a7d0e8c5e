"""Reading behind a URL that is slow and sometimes fails: again after a pause, then one sentence."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from fsspec.core import url_to_fs

from ptft_lightning.data.module import say
from ptft_lightning.errors import UserError

ATTEMPTS = 6
FIRST_PAUSE_S = 0.5  # doubled after each failure, up to the longest
LONGEST_PAUSE_S = 30.0
T = TypeVar("T")


class Incomplete(Exception):
    """What came is not what was sent."""


def persistently(what: str, read: Callable[[], T]) -> T:
    """The result of `read`, tried up to `ATTEMPTS` times.

    Raises:
        UserError: it failed every time, or at once where trying again cannot help.
    """
    pause = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return read()
        except UserError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"{what} cannot be read: {_reason(error)}") from error
        except ValueError as error:  # such as a protocol that nobody knows
            raise UserError(f"{what} cannot be read: {_reason(error)}") from error
        except ImportError as error:
            raise UserError(f"{what} needs another package ({error}){_extra(what)}") from error
        except Exception as error:  # storage libraries raise what they like
            if attempt == ATTEMPTS:
                raise UserError(
                    f"{what} could not be read in {ATTEMPTS} attempts: {_reason(error)}"
                ) from error
            say(f"{what}: attempt {attempt} of {ATTEMPTS} failed ({_reason(error)})")
        # Ranks that failed together must not come back together.
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def read_remote(url: str) -> bytes:
    """The whole content of a small file.

    Raises:
        UserError: see `persistently`.
    """

    def read() -> bytes:
        system, path = url_to_fs(url)
        system.invalidate_cache()
        return bytes(system.cat_file(path))

    return persistently(f"'{url}'", read)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _extra(what: str) -> str:
    return ": pip install 'ptft-lightning[s3]'" if what.startswith(("'s3://", "shard")) else ""
