"""The one exception for what a user did wrong; the command line prints it as one line."""


class UserError(ValueError):
    """A mistake in a command, a config or a file: the message names the value, the place, the fix.

    `main` prints it without a traceback and exits with code 2; from Python it is a `ValueError`.
    """
