"""SIGTERM and Ctrl-C end a training between two steps, after a state was saved, and not in the middle of one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class Interruption:
    """Whether a signal came. Changed by the signal's handler."""

    came: int = 0
    """The signal's number; 0: none."""
    _former: dict[int, Any] = field(default_factory=dict)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; a second one is impatience, and does what it would have done without us."""
        if self.came:
            self.end(number)
        self.came = number

    def end(self, number: int) -> NoReturn:
        """Let whoever handled the signal before have it: Dagster cancels the run, a bare process ends.

        Raises:
            KeyboardInterrupt: the former handler did not raise.
        """
        self.restore()
        signal.raise_signal(number)
        raise KeyboardInterrupt

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()


@contextmanager
def deferred() -> Iterator[Interruption]:
    """Signals are remembered instead of raised in this context. Outside the main thread they cannot be, and are not."""
    interruption = Interruption()
    if current_thread() is main_thread():
        for number in SIGNALS:
            interruption._former[number] = signal.signal(number, interruption.take)
    try:
        yield interruption
    finally:
        interruption.restore()
