"""Models of mlc-llm's own zoo, when mlc-llm is installed: its module definitions, under this project's passes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from relax_models.overrides import parse_overrides
from runtime.errors import UserError

_SIZES = ("context_window_size", "prefill_chunk_size", "max_batch_size")


@dataclass(frozen=True)
class MLCModel:
    """A model that mlc-llm defines. ``param_names`` are in the order of ``packed_params`` and those of weights that
    ``mlc_llm convert_weight`` makes, before quantization."""

    name: str
    model_type: str
    vocab_size: int
    context_window_size: int
    prefill_chunk_size: int
    max_batch_size: int
    mod: tvm.IRModule
    param_names: list[str]


def load_mlc_model(folder: Path, dtype: str, overrides: str = "") -> MLCModel:
    """The model of a Hugging Face folder as mlc_llm.model.MODELS defines it, not quantized (a pass does that).

    Parameters
    ----------
    folder : has config.json, whose model_type mlc-llm knows.
    dtype : of parameters, activations and cache.
    overrides : "key=value;key=value" of context_window_size, prefill_chunk_size and max_batch_size.

    Raises
    ------
    UserError : mlc-llm is not installed, does not know the model, or the folder has no config.json.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{folder} has no config.json: with --frontend mlc, --model is a Hugging Face folder")
    content = json.loads(config_file.read_text(encoding="utf-8"))
    definition = _definition(content.get("model_type", ""))
    sizes = parse_overrides(overrides)
    if not set(sizes) <= set(_SIZES):
        raise UserError(f"with --frontend mlc only {', '.join(_SIZES)} can be overridden, not {', '.join(sizes)}")
    config = definition.config.from_dict(content | sizes)
    model = definition.model(config)
    model.to(dtype)
    mod, params, _ = model.export_tvm(spec=model.get_default_spec(), allow_extern=True)
    return MLCModel(
        name=folder.resolve().name,
        model_type=definition.name,
        vocab_size=config.vocab_size,
        **{size: getattr(config, size) for size in _SIZES},
        mod=_with_vocab_size(mod, config.vocab_size),
        param_names=[name for name, _ in params],
    )


def _definition(model_type: str) -> Any:
    try:
        from mlc_llm.model import MODELS
    except ImportError as error:
        raise UserError(f"--frontend mlc needs mlc-llm ({error}): see https://llm.mlc.ai/docs/install") from None
    name = model_type.replace("-", "_")
    if name not in MODELS:
        raise UserError(f"mlc-llm has no model_type {model_type!r}; it has {', '.join(sorted(MODELS))}")
    return MODELS[name]


def _with_vocab_size(mod: tvm.IRModule, vocab_size: int) -> tvm.IRModule:
    """mlc-llm leaves the size of the vocabulary open; the storage of a matrix depends on it."""
    mod = mod.clone()
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            if "vocab_size" in {size.name for size in relax.analysis.defined_symbolic_vars(func)}:
                mod[var] = func.bind_symbolic_vars({"vocab_size": vocab_size})
    return mod
