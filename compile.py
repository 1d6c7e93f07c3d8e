"""Compiles a model into an MLC model library, and converts its weights.

python compile.py --model qwen --target llvm
python compile.py --model model.gguf --weights model.gguf --quantization q0bf16
python compile.py --model qwen --target cuda --cuda-arch 80,90
python compile.py --model qwen --prefill critiprefill --decode snapkv --policy "base_budget=4096;capacity=2048"
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from runtime.artifact import DEVICE, library_file, model_dir
from runtime.errors import UserError
from runtime.policy import Policy, make_policy

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compile_model(
    model: Annotated[str, typer.Option(help="preset, Hugging Face folder, GGUF file or MLC model folder")],
    target: Annotated[
        str, typer.Option(help="llvm (this machine), cuda, metal, webgpu, 'llvm -mcpu=...' or a JSON dict")
    ] = "llvm",
    quantization: Annotated[
        str | None, typer.Option(help="llvm: q4bf16_1 (default), q0bf16, q0f32; GPUs: q4f16_1 (default), q0f16, ...")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of library and model folder")] = Path("dist"),
    weights: Annotated[str | None, typer.Option(help="Hugging Face folder, GGUF file or hub id to convert")] = None,
    mcpu: Annotated[str | None, typer.Option(help="CPU to compile for, as LLVM names it")] = None,
    cuda_arch: Annotated[str | None, typer.Option(help="GPUs of --target cuda: 80,89,... (sm_80, sm_89)")] = None,
    frontend: Annotated[str, typer.Option(help="who defines the model: ours, or mlc (its zoo; GPUs only)")] = "ours",
    overrides: Annotated[str, typer.Option(help="k=v;k=v: context_window_size, prefill_chunk_size, ...")] = "",
    prefill: Annotated[str, typer.Option(help="attention of prompts: entropy, critiprefill or dense")] = "entropy",
    decode: Annotated[str, typer.Option(help="cache: latent, snapkv, adakv, streaming or full")] = "latent",
    policy: Annotated[str, typer.Option(help="k=v;k=v: base_budget, capacity, ... (runtime/policy.py)")] = "",
    debug_dump: Annotated[Path | None, typer.Option(help="folder for the module after each phase")] = None,
) -> None:
    """Compile a model library; with --weights, convert the weights that belong to it as well."""
    # Compiler imports take seconds: a mistake in the arguments of typer is reported before them.
    from passes.build_library import LibraryFacts, build_library, library_metadata
    from passes.packaging import library_packaging
    from passes.target import cuda_archs, parse_target
    from relax_models.chat_config import update_policy
    from relax_models.convert_weights import check_weights
    from relax_models.hub import local_model
    from relax_models.mlc_frontend import load_mlc_model
    from relax_models.model_folder import write_model_folder
    from relax_models.model_source import resolve_model
    from relax_models.overrides import with_overrides
    from relax_models.registry import export_model
    from relax_models.tokenizer_files import active_vocab_size
    from relax_models.weight_names import stored_names
    from relax_models.weight_source import open_weight_source
    from tir_kernels.quantization import CONVERTERS, default_quantization, model_dtype, weight_storage

    start = time.monotonic()
    chosen_policy = make_policy(prefill, decode, policy)
    tvm_target = parse_target(target, mcpu, cuda_arch)
    packaging = library_packaging(tvm_target, cuda_archs(target, cuda_arch))
    kind = tvm_target.kind.name
    quantization = quantization or default_quantization(kind)
    packing = weight_storage(quantization, kind)
    if frontend == "ours":
        source = resolve_model(model)
        config = with_overrides(source.config, overrides)
        mod, params = export_model(config, model_dtype(quantization))
        names = stored_names([name for name, _ in params], config.model_type, packing.name)
    else:
        _check_frontend(frontend, packing.name, weights)
        source = config = load_mlc_model(Path(model).expanduser(), model_dtype(quantization), overrides)
        mod, names = source.mod, source.param_names
    _check_segments(chosen_policy, config.prefill_chunk_size, config.context_window_size)
    weights = None if weights is None else local_model(weights)
    num_tokens = active_vocab_size(Path(weights or model).expanduser())
    facts = LibraryFacts(
        config.model_type,
        quantization,
        config.vocab_size,
        config.context_window_size,
        config.prefill_chunk_size,
        config.max_batch_size,
        chosen_policy,
        num_tokens and min(num_tokens, config.vocab_size),
    )
    metadata = library_metadata(mod, names, facts, packing, tvm_target)
    if weights is not None:
        check_weights(open_weight_source(weights), metadata["params"], config)

    library = library_file(output, source.name, quantization, DEVICE if kind == "llvm" else kind)
    library = library.with_suffix(packaging.suffix)
    build_library(mod, metadata, packing, tvm_target, library, debug_dump, packaging)
    print(f"library  {library} for {metadata['target']}, {time.monotonic() - start:.0f} s")
    print(
        f"memory   KV cache {metadata['kv_bytes_per_token']:,} bytes a token, temporary"
        f" {metadata['temporary_bytes']:,} bytes (prefill_chunk_size {config.prefill_chunk_size})"
    )
    print(f"policy   {prefill} prefill, {decode} decode")
    if packaging.next_step:
        print(f"next     {packaging.next_step}")
    folder = model_dir(output, source.name, quantization)
    if weights is None:
        update_policy(folder, chosen_policy)
    else:
        params = metadata["params"]
        write_model_folder(weights, config, quantization, chosen_policy, params, CONVERTERS, packing.name, folder)
        print(f"weights  {folder}, {time.monotonic() - start:.0f} s in all")


def _check_frontend(frontend: str, weight_format: str, weights: str | None) -> None:
    if frontend != "mlc":
        raise UserError(f"unknown frontend '{frontend}': choose ours or mlc")
    if weight_format != "mlc":
        raise UserError("--frontend mlc needs a GPU target: CPU kernels do not read the weights that mlc-llm converts")
    if weights is not None:
        raise UserError("with --frontend mlc, convert the weights with mlc_llm convert_weight instead of --weights")


def _check_segments(policy: Policy, prefill_chunk_size: int, context_window_size: int) -> None:
    # A context that fits one chunk is allowed: it may be shorter than a segment, and then has none to observe.
    if policy.prefill != "dense" and prefill_chunk_size < min(policy.segment_size, context_window_size):
        raise UserError(
            f"prefill_chunk_size {prefill_chunk_size} is below segment_size {policy.segment_size}, so that no segment"
            " could be observed: raise it with --overrides, or choose --prefill dense"
        )


def main() -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
