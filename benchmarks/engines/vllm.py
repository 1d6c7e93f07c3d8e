"""vLLM's CPU backend in bfloat16, inside this process: its CPU time and memory are those of the worker."""

import os
import time
from collections.abc import Callable, Sequence

from benchmarks.engines.base import EngineSettings
from benchmarks.engines.hugging_face import rope_overrides

_OVERHEAD_TOKENS = 1024  # of the KV cache: blocks are 128 tokens, and one is the null block


class VLLM:
    """``settings.model`` is a Hugging Face folder; the option "kv_bytes_per_token" is of its KV cache."""

    def __init__(self, settings: EngineSettings) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
        }
        import vllm

        self._version, self._sampling = vllm.__version__, vllm.SamplingParams
        self._settings = settings
        cache_bytes = (settings.context + _OVERHEAD_TOKENS) * settings.options["kv_bytes_per_token"]
        llm = vllm.LLM(
            settings.model,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=settings.context,
            max_num_seqs=1,
            enable_prefix_caching=False,  # else a repeated prompt costs nothing
            kv_cache_memory_bytes=cache_bytes,
            hf_overrides=rope_overrides(settings),
        )
        self._engine, self._count = llm.llm_engine, 0

    @property
    def description(self) -> str:
        yarn = f", YaRN x{self._settings.yarn.factor:g}" if self._settings.yarn else ""
        return f"vLLM {self._version}, bfloat16, compiled by its default{yarn}"

    def generate(self, ids: Sequence[int], count: int, on_token: Callable[[int], None]) -> list[float]:
        self._count += 1
        start, seconds = time.perf_counter(), []
        sampling = self._sampling(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        self._engine.add_request(str(self._count), {"prompt_token_ids": list(ids)}, sampling)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                for token in output.outputs[0].token_ids[len(seconds) :]:
                    seconds.append(time.perf_counter() - start)
                    on_token(token)
        return seconds
