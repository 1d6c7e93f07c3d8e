"""Our kernels as machine code of each GPU generation: nothing spilled, within the limits of a block, on tensor cores.

The code of 5 architectures takes nvcc a minute or two; without nvcc and cuobjdump the tests are skipped.
"""

import pytest
from gpu.kernel_code import cuda_source, kernels_of_a_layer

from benchmarks.gpu_resources import fatbin_resources, violations
from passes.packaging.cuda_toolkit import find_cuda_tool, find_cuda_toolkit
from passes.target import DEFAULT_CUDA_ARCHS, parse_target
from runtime.errors import UserError

_ON_TENSOR_CORES = ("attention_prefill_kernel", "attention_gated_kernel")
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
    resources = fatbin_resources(toolkit.fatbin(cuda_source(kernels, target), archs))
    for name in kernels:
        found = {kernel.arch for kernel in resources if kernel.kernel.startswith(f"{name}_kernel")}
        assert found == set(archs), name
    assert violations(resources, (*_ON_TENSOR_CORES, "attention_decode_kernel")) == []
    copies = {kernel.kernel for kernel in resources if kernel.async_copies}
    assert copies.issuperset(_ON_TENSOR_CORES)  # pages are loaded beside the products
