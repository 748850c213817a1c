"""Exceptions for users. Each message is one line: what was given, what was expected, what to do."""


class UserError(Exception):
    """An error that the user can fix; its message is shown without a traceback."""

    exit_code = 1


class UsageError(UserError):
    """The command or its parameters are invalid: nothing was started (exit code 2)."""

    exit_code = 2


class RunError(UserError):
    """The run failed; the last good results are unchanged (exit code 1)."""


class BlockingCheckError(RunError):
    """A blocking check failed: assets downstream of its asset were not materialized (exit code 1)."""


class TileError(Exception):
    """One tile cannot be used; the message becomes its quarantine reason."""
