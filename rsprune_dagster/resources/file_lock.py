"""A lock on a file, which the system takes back when its process ends, however that ends."""

import fcntl
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rsprune_dagster.errors import RunError

_SAID_AFTER_S = 1.0
_LOOK_EVERY_S = 0.05


@contextmanager
def held(path: Path, name: str, say: Callable[[str], object], *, patience_s: float = math.inf) -> Iterator[None]:
    """Hold an flock on the file `path`, which `name` is the name of; what holds it is waited for, with a message.

    Raises:
        RunError: it was held for longer than `patience_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(file.fileno(), name, say, patience_s)
        yield


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
