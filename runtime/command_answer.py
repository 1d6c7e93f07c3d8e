"""What ``chat`` and ``generate`` share: one answer with progress, stop signals and the file of ``--cache``."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.console import PrefillProgress
from runtime.engine import Engine, Prompt
from runtime.prompt_cache import PromptCache
from runtime.sampling import SamplingParams
from runtime.stop_signals import StopRequest
from runtime.stream_output import StreamOutput


def stream_answer(
    engine: Engine, prompt: Prompt, sampling: SamplingParams, stop: StopRequest, cache: PromptCache | None
) -> Iterator[StreamOutput]:
    """``engine.generate`` for a terminal. ``stop`` ends the answer after the token at hand.

    Raises
    ------
    KeyboardInterrupt
        ``stop`` came during the prefill. Its whole steps are cached, and saved if there is a ``cache``.
    UserError
        As ``Engine.generate`` and ``PromptCache.restore``.
    """
    if cache is not None:
        prompt = engine.encode(prompt)
        engine.generate(prompt, sampling)  # refuses what is too long before a file is loaded for it
        cache.restore(prompt)
    with PrefillProgress() as progress:

        def on_prefill(done: int, total: int) -> None:
            progress(done, total)
            if stop.wanted:
                raise KeyboardInterrupt
            if cache is not None:
                cache.after_step()

        answer = engine.generate(prompt, sampling, on_prefill=on_prefill)
        try:
            output = next(answer)
        except KeyboardInterrupt:
            if cache is not None:
                cache.after_interrupt()
            raise
    if cache is not None:
        cache.after_prefill()
    while output is not None:
        yield output
        output = None if stop.wanted else next(answer, None)
