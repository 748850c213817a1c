"""A user's error ends a step with its own sentence. An error of the network or of a server is retried."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import dagster as dg

from rsprune_dagster.errors import UserError
from rsprune_dagster.terminal import printable

N_RETRIES: Final = 2
RETRY_AFTER_S: Final = 60
"""A server that restarts or a network that stumbles is back after a minute or two; longer needs a person."""
_PASSING: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
)
"""What a network file system says while its server is away."""
_NETWORK_ERRORS: Final = ("ConnectionError", "Timeout", "ConnectTimeoutError", "ReadTimeoutError", "ServerDisconnected")
"""How the errors of botocore, aiohttp and urllib3 end or are called that are not of Python's own kinds."""


@contextmanager
def surface_user_errors() -> Iterator[None]:
    """Ends a step with a `UserError`'s own sentence; also a decorator. Other errors are ours and keep their traceback.

    Raises:
        RetryRequested: behind the error is a connection that broke or a server that was away.
        Failure: without retries, as the same parameters and files would fail again.
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
    """Whether trying again can help: a connection or a server is at fault, in the error or in what caused it."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or _is_of_the_network(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_of_the_network(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    return type(error).__name__.endswith(_NETWORK_ERRORS)
