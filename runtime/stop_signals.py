"""Ctrl-C and SIGTERM as a flag: an exception in the middle of a step would cost the cache."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """``signal`` is the number of the signal that asked to stop, None as long as there was none."""

    signal: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether to stop at the next good moment."""
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Set a flag on SIGINT and SIGTERM. A second signal, for a step that takes too long, raises KeyboardInterrupt."""
    stop = StopRequest()

    def on_signal(number: int, _frame: object) -> None:
        if stop.wanted:
            raise KeyboardInterrupt
        stop.signal = number

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
