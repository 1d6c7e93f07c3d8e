"""Builds the model library: pipeline, code generation, and the link with the KV cache object."""

from dataclasses import dataclass
from pathlib import Path

from tvm import IRModule, relax
from tvm.ir.transform import PassContext
from tvm.target import Target

from runtime.errors import UserError
from runtime.policy import Policy
from tir_kernels.gpu.features import gpu_features
from tir_kernels.stored_weight import StoredTensor, WeightStorage

from .attention_spec import attention_spec
from .packaging import Packaging, library_packaging
from .pipeline import library_pipeline
from .weight_plan import weight_plan


@dataclass(frozen=True)
class LibraryFacts:
    """What the metadata says of a library beside what the module itself tells (sizes in tokens and sequences)."""

    model_type: str
    quantization: str
    vocab_size: int
    context_window_size: int
    prefill_chunk_size: int
    max_batch_size: int
    policy: Policy
    active_vocab_size: int | None = None  # tokens that the tokenizer has; None if it is not known


def library_metadata(
    mod: IRModule, param_names: list[str], facts: LibraryFacts, weight_format: WeightStorage, target: Target
) -> dict:
    """The metadata of the library that :func:`build_library` will make of an MLC-style module.

    It has the keys that MLC's engine reads (mlc-llm cpp/metadata/model.cc) and ours: how each parameter is stored, for
    what CPU, RoPE, the policy of attention and cache, the cache's bytes a token. ``param_names`` are in the order of
    ``packed_params``.

    Raises
    ------
    UserError : the target has no kernels for the dtype of the model or of the cache.
    """
    spec = attention_spec(mod)
    if target.kind.name != "llvm":
        _check_gpu(target, spec.dtype, facts.policy)
    return {
        "model_type": facts.model_type,
        "quantization": facts.quantization,
        "vocab_size": facts.vocab_size,
        "context_window_size": facts.context_window_size,
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "prefill_chunk_size": facts.prefill_chunk_size,
        "max_batch_size": facts.max_batch_size,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "kv_state_kind": "kv_cache",
        "active_vocab_size": facts.active_vocab_size,
        "model_task": "chat",
        "kv_cache": {
            "num_hidden_layers": spec.num_hidden_layers,
            "num_attention_heads": spec.num_attention_heads,
            "num_key_value_heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
        },
        "params": [
            _param(name, param.logical_shape, tensor)
            for param_name, param in zip(param_names, weight_plan(mod, weight_format), strict=True)
            for name, tensor in zip(param.names(param_name), param.tensors, strict=True)
        ],
        "weight_format": weight_format.name,
        "target": str(target),
        "kv_bytes_per_token": spec.kv_bytes_per_token(facts.policy),
        "rope": {"theta": spec.rope_theta, "dims": spec.rotary_dim, "scaling": spec.rope_scaling_dict},
        "policy": facts.policy.to_dict(),
    }


def _check_gpu(target: Target, dtype: str, policy: Policy) -> None:
    kind = target.kind.name
    if dtype == "bfloat16" and not gpu_features(target).bfloat16:
        raise UserError(f"{kind} has no bfloat16: choose --quantization q4f16_1, q0f16, q4f32_1 or q0f32")
    if policy.kv_dtype != "model":
        raise UserError(f"kv_dtype={policy.kv_dtype} is for CPUs only: on {kind} the cache has the model's dtype")


def _param(name: str, logical_shape: tuple[int, ...], tensor: StoredTensor) -> dict:
    return {
        "name": name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "preprocs": [],
        "pipeline_stages": [0],
        "logical_shape": list(logical_shape),
        "format": tensor.format,
    }


def build_library(
    mod: IRModule,
    metadata: dict,
    weight_format: WeightStorage,
    target: Target,
    output: Path,
    debug_dump: Path | None = None,
    packaging: Packaging | None = None,
) -> None:
    """Compiles an MLC-style module (parameters in ``packed_params``) to the library ``output``.

    ``metadata`` comes from :func:`library_metadata`; memory figures are added to it. The file appears under its name
    only when it is complete. ``packaging`` is the form of the file, by default the one of ``target``.

    Raises
    ------
    UserError : no C++ compiler or CUDA toolkit for the target.
    """
    packaging = packaging or library_packaging(target)
    output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = library_pipeline(target, weight_format, metadata, debug_dump)
    # On a CPU, common subexpressions of two kernel branches end up in host code that does not dominate its uses. A GPU
    # needs the pass: it leaves to the host what is the same for all threads, 64-bit numbers that WebGPU has not.
    with PassContext(config={"tirx.disable_cse_tir": target.kind.name == "llvm"}), target:
        executable = packaging.build(lambda: relax.build(mod, target, relax_pipeline=pipeline))
    packaging.export(executable, output)
