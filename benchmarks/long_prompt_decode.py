"""The speed of decoding behind a very long prompt, behind its compression and behind a short prompt."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.long_prompt_store import Decode
from benchmarks.timing import SETTLING_TOKENS, Stopwatch
from runtime.engine import Engine
from runtime.stop_signals import StopRequest

_TOKENS = 64  # timed together
_ROUNDS = 5
_SHORT_PROMPT = 1024


def time_decode(
    engine: Engine, prompt: Sequence[int], threads: int, folder: Path, stop: StopRequest
) -> Iterator[Decode]:
    """First behind the whole cache of ``prompt``; then, if the library compresses, in turns behind what it keeps of it
    and behind the first 1,024 tokens: memory may be read at another speed a minute later.

    The engine keeps everything when it comes and follows its library's decode policy afterwards. ``folder`` takes two
    temporary files. KeyboardInterrupt when ``stop`` is set.
    """
    yield _timed(engine, prompt, threads, stop)
    compressing = engine.metadata.policy.decode
    if compressing == "full":
        return
    engine.set_policy(f"decode={compressing}")
    with TemporaryDirectory(dir=folder) as temporary:
        states = []
        for number, ids in enumerate((prompt, prompt[:_SHORT_PROMPT])):
            settled = [*ids, *_tokens(engine, ids, SETTLING_TOKENS + 1, stop)]
            states.append((settled, Path(temporary) / f"{number}.kv"))
            engine.save_cache(states[-1][1])
        for _ in range(_ROUNDS):
            for ids, file in states:
                engine.load_cache(file)
                yield _timed(engine, ids, threads, stop)


def _timed(engine: Engine, ids: Sequence[int], threads: int, stop: StopRequest) -> Decode:
    """Tokens after the first one behind ``ids``."""
    tokens = _tokens(engine, ids, 1 + _TOKENS, stop)
    next(tokens)
    watch = Stopwatch(threads)
    for _ in tokens:
        pass
    sample = watch.stop()
    return Decode(entries=engine.cache_lengths[1], tokens=_TOKENS, sample=sample)


def _tokens(engine: Engine, ids: Sequence[int], count: int, stop: StopRequest) -> Iterator[int]:
    never_end = dict.fromkeys(engine.stop_token_ids, -1000.0)
    sampling = engine.default_sampling.changed(temperature=0, max_tokens=count, logit_bias=never_end)
    for output in engine.generate(ids, sampling):
        yield output.token_id
        if stop.wanted:
            raise KeyboardInterrupt
