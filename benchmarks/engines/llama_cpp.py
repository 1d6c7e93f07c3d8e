"""llama.cpp through the C API that llama-cpp-python binds, flash attention on, 16-bit KV cache."""

import ctypes
from collections.abc import Callable, Sequence

import llama_cpp
import numpy as np

from benchmarks.engines.base import EngineSettings

# n_batch and n_ubatch: on the machine of docs/performance.md 2048 was slower in every row.
_MICRO_BATCH = 512


class LlamaCpp:
    """``settings.model`` is a GGUF file; no options."""

    def __init__(self, settings: EngineSettings) -> None:
        # The log callback must outlive the library's use of it.
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            settings.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {settings.model}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = settings.context
        params.n_batch = params.n_ubatch = _MICRO_BATCH
        params.n_threads = params.n_threads_batch = settings.threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._yarn = settings.yarn
        if settings.yarn:
            params.rope_scaling_type = llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN
            params.rope_freq_scale = 1 / settings.yarn.factor
            params.yarn_orig_ctx = settings.yarn.original
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {settings.context} tokens")

    @property
    def description(self) -> str:
        yarn = f", YaRN x{self._yarn.factor:g}" if self._yarn else ""
        return f"llama-cpp-python {llama_cpp.__version__}, n_ubatch {_MICRO_BATCH}{yarn}"

    def generate(self, ids: Sequence[int], count: int, on_token: Callable[[int], None]) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        self._forward(ids)
        for _ in range(count - 1):
            token = self._best_token()
            on_token(token)
            self._forward([token])
        on_token(self._best_token())

    def _forward(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), _MICRO_BATCH):
            part = ids[start : start + _MICRO_BATCH]
            tokens = (ctypes.c_int32 * len(part))(*part)
            status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(part)))
            if status != 0:
                raise RuntimeError(f"llama_decode failed with status {status}")
        llama_cpp.llama_synchronize(self._context)

    def _best_token(self) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
