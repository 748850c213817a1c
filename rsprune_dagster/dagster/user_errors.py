"""Errors that a user can fix are shown on the run page as one sentence; transient errors are retried."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from rsprune_dagster.utils.errors import UserError
from rsprune_dagster.utils.terminal import printable

N_RETRIES: Final = 2
RETRY_AFTER_S: Final = 60
"""Retries cover a restarting server or a network failure of one to two minutes; a longer one needs a person."""
_PASSING: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
)
"""Errors of a network file system while its server is unavailable."""
_NETWORK_ERRORS: Final = ("ConnectionError", "Timeout", "ConnectTimeoutError", "ReadTimeoutError", "ServerDisconnected")
"""Names and name endings of connection errors of botocore, aiohttp and urllib3 that are no built-in types."""


@contextmanager
def surface_user_errors() -> Iterator[None]:
    """Fail the step with a `UserError`'s message; also a decorator. Other errors are bugs and keep their traceback.

    Raises:
        RetryRequested: the error was caused by a broken connection or an unavailable server.
        Failure: any other UserError; it is not retried, since the same input would fail again.
    """
    try:
        yield
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as error:
        if is_transient(error):
            raise dg.RetryRequested(max_retries=N_RETRIES, seconds_to_wait=RETRY_AFTER_S) from error
        if isinstance(error, UserError):
            raise dg.Failure(printable(str(error)), allow_retries=False) from error
        raise


def is_transient(error: BaseException | None) -> bool:
    """Whether a retry can help: the error or one of its causes is a connection or server error."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or _is_of_the_network(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_of_the_network(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    return type(error).__name__.endswith(_NETWORK_ERRORS)
