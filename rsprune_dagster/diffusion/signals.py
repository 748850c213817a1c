"""SIGTERM and Ctrl-C stop a training after the current step, once a state was saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class SignalHandler:
    """Whether a signal was received. The signal handler sets it."""

    came: int = 0
    """The signal's number; 0: none."""
    _former: dict[int, Any] = field(default_factory=dict)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; a second one gets the previous handler at once."""
        if self.came:
            self.end(number)
        self.came = number

    def end(self, number: int) -> NoReturn:
        """Pass the signal to the previous handler: Dagster cancels the run, a plain process ends.

        Raises:
            KeyboardInterrupt: the previous handler did not raise.
        """
        self.restore()
        signal.raise_signal(number)
        raise KeyboardInterrupt

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()


@contextmanager
def deferred_signals() -> Iterator[SignalHandler]:
    """Defer signals in this context. Outside the main thread this is impossible, and signals are not deferred."""
    interruption = SignalHandler()
    if current_thread() is main_thread():
        for number in SIGNALS:
            interruption._former[number] = signal.signal(number, interruption.take)
    try:
        yield interruption
    finally:
        interruption.restore()
