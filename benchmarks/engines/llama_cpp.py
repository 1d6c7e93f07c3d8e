"""llama.cpp through the C API that llama-cpp-python binds, flash attention on."""

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np

from benchmarks.engines.base import EngineSettings
from benchmarks.timing import Sample, Stopwatch

_MICRO_BATCHES = (512, 2048)


class LlamaCpp:
    """Takes the micro-batch (n_batch = n_ubatch) that is faster on the warm-up prompt."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        # The log callback must outlive the library's use of it.
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(settings.model.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {settings.model}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context = None
        self._open(_MICRO_BATCHES[0])

    @property
    def description(self) -> str:
        return f"llama-cpp-python {llama_cpp.__version__}, n_ubatch {self._micro_batch}"

    def warm_up(self, ids: Sequence[int]) -> None:
        seconds = {}
        for micro_batch in _MICRO_BATCHES:
            self._open(micro_batch)
            self.prefill(ids[:64])
            seconds[micro_batch] = self.prefill(ids).seconds
        self._open(min(seconds, key=seconds.get))
        self.prefill(ids[:64])

    def prefill(self, ids: Sequence[int]) -> Sample:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        watch = Stopwatch(self._settings.threads)
        self._forward(ids)
        return watch.stop()

    def decode(self, ids: Sequence[int], count: int) -> Sample:
        self.prefill(ids)
        token = self._best_token()
        watch = Stopwatch(self._settings.threads)
        for _ in range(count):
            self._forward([token])
            token = self._best_token()
        return watch.stop()

    def _open(self, micro_batch: int) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._settings.context
        params.n_batch = params.n_ubatch = self._micro_batch = micro_batch
        params.n_threads = params.n_threads_batch = self._settings.threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {self._settings.context} tokens")

    def _forward(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), self._micro_batch):
            part = ids[start : start + self._micro_batch]
            tokens = (ctypes.c_int32 * len(part))(*part)
            status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(part)))
            if status != 0:
                raise RuntimeError(f"llama_decode failed with status {status}")
        llama_cpp.llama_synchronize(self._context)

    def _best_token(self) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
