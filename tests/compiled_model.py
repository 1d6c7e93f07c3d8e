"""Compiles a small model with weights from memory and runs it through the runtime, as a user's library would run."""

from pathlib import Path

import numpy as np

from passes.build_library import LibraryFacts, build_library, library_metadata
from passes.packaging import Packaging
from passes.target import parse_target
from relax_models.config import ModelConfig
from relax_models.convert_weights import convert_weights
from relax_models.registry import export_model
from relax_models.weight_names import stored_names
from runtime.artifact import ChatConfig
from runtime.library import ModelLibrary
from runtime.params import load_params
from runtime.policy import Policy, make_policy
from runtime.sequence import CachedSequence
from tir_kernels.quantization import CONVERTERS, model_dtype, weight_storage

DENSE = make_policy("dense", "full")


class ArrayWeights:
    """A weight source over arrays by their Hugging Face names."""

    path = Path("arrays")

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def names(self) -> list[str]:
        return list(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def bits_per_weight(self, _name: str) -> float:
        return 32.0

    def load_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.arrays[name][start:stop], np.float32)

    def load(self, name: str) -> np.ndarray:
        return self.load_rows(name, 0, self.shape(name)[0])


class CompiledModel:
    """One sequence of a compiled model."""

    def __init__(self, library: ModelLibrary, params) -> None:
        self.library = library
        self.params = params
        self._sequence = CachedSequence(library, params, library.metadata.context_window_size)

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Append ``ids``; float32 logits [vocab] after the last of them."""
        return self.library.numpy(self._sequence.prefill(ids)).reshape(-1).copy()

    def decode(self, token_id: int) -> np.ndarray:
        """Append one token through the decode function; float32 logits [vocab]."""
        return self.library.numpy(self._sequence.decode(token_id)).reshape(-1).copy()


def build(
    config: ModelConfig,
    quantization: str,
    path: Path,
    target: str = "llvm",
    debug_dump: Path | None = None,
    policy: Policy = DENSE,
    packaging: Packaging | None = None,
) -> dict:
    """Compile ``config`` to the library ``path``; returns its metadata."""
    tvm_target = parse_target(target)
    packing = weight_storage(quantization, tvm_target.kind.name)
    mod, params = export_model(config, model_dtype(quantization))
    facts = LibraryFacts(
        config.model_type,
        quantization,
        config.vocab_size,
        config.context_window_size,
        config.prefill_chunk_size,
        config.max_batch_size,
        policy,
    )
    names = stored_names([name for name, _ in params], config.model_type, packing.name)
    metadata = library_metadata(mod, names, facts, packing, tvm_target)
    build_library(mod, metadata, packing, tvm_target, path, debug_dump, packaging)
    return metadata


def compile_model(
    config: ModelConfig,
    weights: dict[str, np.ndarray],
    quantization: str,
    folder: Path,
    target: str = "llvm",
    policy: Policy = DENSE,
    packaging: Packaging | None = None,
) -> CompiledModel:
    """Compile ``config``, convert ``weights`` (float32 by Hugging Face names) and load both from ``folder``."""
    path = folder / "model.so"
    metadata = build(config, quantization, path, target, policy=policy, packaging=packaging)
    shards = folder / "weights"
    convert_weights(
        ArrayWeights(weights), metadata["params"], config, CONVERTERS, metadata["weight_format"], shards, progress=False
    )
    library = ModelLibrary(path)
    chat_config = ChatConfig(
        model_type=config.model_type,
        quantization=quantization,
        vocab_size=config.vocab_size,
        context_window_size=config.context_window_size,
    )
    return CompiledModel(library, load_params(shards, chat_config, library.metadata, path, library.device))
