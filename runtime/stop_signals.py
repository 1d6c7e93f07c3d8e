"""Ctrl-C and SIGTERM as a flag, where an exception in the middle of a step would cost the cache; or as an exception."""

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
def stop_requests(at_once: bool = False) -> Iterator[StopRequest]:
    """Set a flag on SIGINT and SIGTERM. A second signal, for a step that takes too long, raises KeyboardInterrupt; with
    ``at_once`` the first one does, too.

    SIGINT counts also where a shell has started the program in the background, with SIGINT ignored.
    """
    stop = StopRequest()

    def on_signal(number: int, _frame: object) -> None:
        again, stop.signal = stop.wanted, stop.signal or number
        if again or at_once:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
