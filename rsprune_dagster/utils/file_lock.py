"""A lock on a file, which the system takes back when its process ends, however that ends."""

import errno
import fcntl
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rsprune_dagster.utils.errors import RunError

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
_SAID_AFTER_S = 1.0
_LOOK_EVERY_S = 0.05


@contextmanager
def held(path: Path, name: str, say: Callable[[str], object], *, patience_s: float = math.inf) -> Iterator[None]:
    """Hold an flock on the file `path`, which `name` is the name of; what holds it is waited for, with a message.

    A file system without locks holds nobody up: `say` tells that nothing is locked there.

    Raises:
        RunError: it was held for longer than `patience_s`, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; give this user the right to write it") from error
    with file:
        try:
            _acquire(file.fileno(), name, say, patience_s)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say(f"the file system of {path} has no locks: start no second command there meanwhile")
        yield


@contextmanager
def hold_if_free(path: Path) -> Iterator[bool]:
    """Hold an flock on the file `path` unless another process does; whether it is held. True without locks."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield True


def _acquire(descriptor: int, name: str, say: Callable[[str], object], patience_s: float) -> None:
    began = time.monotonic()
    said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited_s = time.monotonic() - began
            if waited_s > patience_s:
                raise RunError(
                    f"{name} has been held by another process for {waited_s:.0f} s: "
                    "let that command end, or stop it, then run again"
                ) from None
            if waited_s > _SAID_AFTER_S and not said:
                said = True
                say(f"another process holds {name}: waiting for it")
            time.sleep(_LOOK_EVERY_S)
        else:
            return
