"""The one exception for what a user did wrong; the command line prints it as one line."""

from __future__ import annotations

import errno

PLACE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENOTDIR),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
)


class UserError(ValueError):
    """A mistake in a command, a config or a file: the message names the value, the place, the fix.

    `main` prints it without a traceback and exits with code 2; from Python it is a `ValueError`.
    """


def unusable_place(error: OSError) -> UserError | None:
    """What the system says of a file or directory that cannot be used: no permission, no room, a
    file where a directory should be; None for its other errors."""
    if error.errno not in PLACE:
        return None
    if error.filename is None:
        return UserError(
            f"a file could not be written: {error.strerror}: make room, or name others"
        )
    return UserError(f"'{error.filename}': {error.strerror}: name another place, or mend this one")
