"""OpenVINO GenAI on a GGUF file, paged attention on the CPU: bf16 inference and an 8-bit KV cache are its defaults."""

from collections.abc import Callable, Sequence

import numpy as np
import openvino
import openvino_genai

from benchmarks.engines.base import EngineSettings

_WHOLE_PROMPT = 1 << 20


class OpenVINO:
    """Its GGUF reader has no RoPE scaling, so there is no YaRN. Options, all of them optional:

    "kv": a value of KV_CACHE_PRECISION. "sparse": "XATTENTION" or "TRISHAPE", with the library's defaults. "chunk":
    tokens of a prefill step; by default the whole prompt, which is fastest and the only one in which XATTENTION gives
    right text; TRISHAPE skips whole earlier steps and needs several. "evict": most tokens that the KV cache keeps.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._options = options = settings.options
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # else a repeated prompt costs nothing
        scheduler.max_num_batched_tokens = options.get("chunk", _WHOLE_PROMPT)
        if mode := options.get("sparse"):
            scheduler.use_sparse_attention = True
            scheduler.sparse_attention_config = openvino_genai.SparseAttentionConfig(
                mode=getattr(openvino_genai.SparseAttentionMode, mode)
            )
        if kept := options.get("evict"):
            scheduler.use_cache_eviction = True
            # The sizes of the first and of the newest part are those of its default configuration.
            scheduler.cache_eviction_config = openvino_genai.CacheEvictionConfig(
                32, 128, kept, openvino_genai.AggregationMode.NORM_SUM
            )
        properties = {"INFERENCE_NUM_THREADS": settings.threads}
        if kv := options.get("kv"):
            properties["KV_CACHE_PRECISION"] = kv
        self._pipeline = openvino_genai.LLMPipeline(settings.model, "CPU", scheduler_config=scheduler, **properties)

    @property
    def description(self) -> str:
        options = self._options
        parts = [f"OpenVINO GenAI {openvino_genai.get_version()}", f"KV cache {options.get('kv', 'u8 (default)')}"]
        if mode := options.get("sparse"):
            parts.append(f"{mode} with its defaults, prefill step {options.get('chunk', 'the whole prompt')}")
        if kept := options.get("evict"):
            parts.append(f"cache eviction to {kept} tokens")
        return ", ".join(parts)

    def generate(self, ids: Sequence[int], count: int, on_token: Callable[[int], None]) -> list[float]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = count
        config.ignore_eos = True
        config.do_sample = False
        # A tensor of ids, not text: the tokenizer would cut it at 8192 tokens.
        prompt = openvino.Tensor(np.array([ids], np.int64))
        result = self._pipeline.generate(prompt, config, _Streamer(on_token))
        metrics = result.perf_metrics.raw_metrics
        first = result.perf_metrics.get_ttft().mean  # milliseconds, as are the times of the tokens
        times = metrics.m_new_token_times
        return [(first + time - times[0]) / 1e3 for time in times]


class _Streamer(openvino_genai.StreamerBase):
    def __init__(self, on_token: Callable[[int], None]) -> None:
        super().__init__()
        self._on_token = on_token

    def write(self, tokens: int | list[int]) -> openvino_genai.StreamingStatus:
        for token in [tokens] if isinstance(tokens, int) else tokens:
            self._on_token(token)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass
