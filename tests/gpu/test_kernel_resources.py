"""Our kernels as machine code of each GPU generation: nothing spilled, within the limits of a block, on tensor cores.

The code of 5 architectures takes nvcc a minute or two; without nvcc and cuobjdump the tests are skipped.
"""

import pytest
from gpu.kernel_code import cuda_source, kernels_of_a_layer

from benchmarks.gpu_occupancy import resident_blocks
from benchmarks.gpu_resources import fatbin_resources, violations
from passes.packaging.cuda_toolkit import find_cuda_tool, find_cuda_toolkit
from passes.target import DEFAULT_CUDA_ARCHS, parse_target
from runtime.errors import UserError
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.linear_many_rows import linear_many_rows

_COPYING = ("attention_prefill_kernel", "attention_gated_kernel", "linear_q4_kernel", "linear_plain_kernel")
_ON_TENSOR_CORES = (*_COPYING, "attention_decode_kernel")
# Query and KV heads, head dimension, hidden size, dtype, architectures.
_MODELS = {
    "Qwen2.5-0.5B": (14, 2, 64, 896, "float16", DEFAULT_CUDA_ARCHS),
    "Qwen2.5-7B": (28, 4, 128, 3584, "bfloat16", (80, 120)),
}


@pytest.mark.parametrize("model", _MODELS)
def test_kernels_stay_within_what_a_gpu_has(model):
    *shape, dtype, archs = _MODELS[model]
    try:
        toolkit = find_cuda_toolkit(archs)
        find_cuda_tool("cuobjdump")
    except UserError as error:
        pytest.skip(str(error))
    target = parse_target("cuda")
    kernels = kernels_of_a_layer(*shape, dtype, target)
    hidden = shape[-1]
    options = {"bias": True, "residual": False, "out_dtype": dtype}
    for form in ("q4", "plain"):
        kernels[f"linear_{form}"] = linear_many_rows(4 * hidden, hidden, form, dtype, gpu_features(target), **options)
    resources = fatbin_resources(toolkit.fatbin(cuda_source(kernels, target), archs))
    for name in kernels:
        found = {kernel.arch for kernel in resources if kernel.kernel.startswith(f"{name}_kernel")}
        assert found == set(archs), name
    assert violations(resources, _ON_TENSOR_CORES) == []
    by_name = {name: [kernel for kernel in resources if kernel.kernel == name] for name in _COPYING}
    for name, found in by_name.items():
        assert all(kernel.async_copies for kernel in found), name  # operands are loaded beside the products
    for kernel in by_name["linear_q4_kernel"] + by_name["linear_plain_kernel"]:
        # What a barrier leaves idle, the other block takes.
        assert resident_blocks(kernel.arch, kernel.threads, kernel.registers, kernel.shared_memory) >= 2, kernel
