"""Errors that a user can mend reach the run page as the sentence they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from rsprune_dagster.errors import UserError


@contextmanager
def said_plainly() -> Iterator[None]:
    """Ends a step with a `UserError`'s own sentence; also a decorator. Other errors are ours and keep their traceback.

    Raises:
        Failure: without retries, as the same parameters and files would fail again.
    """
    try:
        yield
    except UserError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
