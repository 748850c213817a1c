"""What can go wrong for a user, in one line each: what came, what was expected, what to do."""


class UserError(Exception):
    """An error the user can mend; its message is shown as it is, without a traceback."""

    exit_code = 1


class UsageError(UserError):
    """The command or its parameters are off: nothing was started (exit code 2)."""

    exit_code = 2


class RunError(UserError):
    """The run could not finish; the last good results are untouched (exit code 1)."""


class GateError(RunError):
    """A blocking check failed: what depends on its asset was not made (exit code 1)."""


class TileError(Exception):
    """One tile cannot be used; its message is the reason it is quarantined with."""
