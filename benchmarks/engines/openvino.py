"""OpenVINO GenAI on a GGUF file, with the CPU plugin's defaults: bf16 inference, paged attention, 8-bit KV cache."""

from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai

from benchmarks.engines.base import EngineSettings
from benchmarks.timing import Sample, Stopwatch

_WHOLE_PROMPT = 1 << 20


class OpenVINO:
    """``kv_dtype`` is a value of KV_CACHE_PRECISION."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # else a repeated prompt costs nothing
        scheduler.max_num_batched_tokens = _WHOLE_PROMPT  # as in its own latency-oriented default
        properties = {"INFERENCE_NUM_THREADS": settings.threads}
        if settings.kv_dtype:
            properties["KV_CACHE_PRECISION"] = settings.kv_dtype
        self._pipeline = openvino_genai.LLMPipeline(settings.model, "CPU", scheduler_config=scheduler, **properties)

    @property
    def description(self) -> str:
        return f"OpenVINO GenAI {openvino_genai.get_version()}, KV cache {self._settings.kv_dtype or 'u8 (default)'}"

    def warm_up(self, ids: Sequence[int]) -> None:
        self.decode(ids, 4)

    def prefill(self, ids: Sequence[int]) -> Sample:
        watch = Stopwatch(self._settings.threads)
        self._generate(ids, 1)
        return watch.stop()

    def decode(self, ids: Sequence[int], count: int) -> Sample:
        after_prefill = _AfterFirstToken(self._settings.threads)
        result = self._generate(ids, count + 1, after_prefill)
        times = result.perf_metrics.raw_metrics.m_new_token_times  # milliseconds
        return after_prefill.watch.stop((times[count] - times[0]) / 1e3)

    def _generate(self, ids: Sequence[int], count: int, streamer: openvino_genai.StreamerBase | None = None):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        # A tensor of ids, not text: the tokenizer would cut it at 8192 tokens.
        return self._pipeline.generate(openvino.Tensor(np.array([ids], np.int64)), config, streamer)


class _AfterFirstToken(openvino_genai.StreamerBase):
    """Starts its stopwatch at the first token."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads
        self.watch: Stopwatch | None = None

    def write(self, tokens: int | list[int]) -> openvino_genai.StreamingStatus:
        if self.watch is None:
            self.watch = Stopwatch(self._threads)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass
