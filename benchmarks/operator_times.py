"""Where the time of a step goes: seconds by kernel, as the virtual machine calls them."""

import re
import time
from collections import defaultdict

from runtime.library import ModelLibrary


class OperatorTimes:
    """Listens to a library for good, so it wants one of its own: the calls cost a little."""

    def __init__(self, library: ModelLibrary) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._started: list[float] = []
        library.instrument(self._on_call)

    def _on_call(self, name: str, before: bool) -> None:
        if before:
            self._started.append(time.perf_counter())
        else:
            # The compiler numbers the variants of a kernel: observe, observe1.
            self._seconds[re.sub(r"\d*$", "", name)] += time.perf_counter() - self._started.pop()

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call, longest first."""
        taken = dict(sorted(self._seconds.items(), key=lambda item: -item[1]))
        self._seconds.clear()
        return taken
