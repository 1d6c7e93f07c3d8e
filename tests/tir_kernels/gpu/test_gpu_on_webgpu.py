"""The kernels of attention, the gate and the compression as WGSL: within the limits that every WebGPU device has."""

import pytest
from webgpu_limits import WEBGPU, check_webgpu_limits

from tir_kernels.gpu.attention_decode import attention_decode
from tir_kernels.gpu.attention_gated import attention_gated
from tir_kernels.gpu.attention_prefill import attention_prefill
from tir_kernels.gpu.block_representatives import block_representatives
from tir_kernels.gpu.compact import compact
from tir_kernels.gpu.observe import observe
from tir_kernels.gpu.rope_append import rope_append
from tir_kernels.gpu.rope_table import rope_table
from tir_kernels.gpu.row_tiles import row_tiles
from tir_kernels.gpu.select_blocks import select_blocks
from tir_kernels.gpu.select_entries import select_entries
from tir_kernels.gpu.window_scores import window_scores

_FORMS = {"code": ("code", "head", "online", 0.0, True), "paper": ("paper", "amax", "prompt", 0.25, False)}
_KERNELS = {
    "rope_table": lambda: rope_table(128, WEBGPU),
    "rope_append": lambda: rope_append(28, 4, 128, 128, 64, "float16", WEBGPU, window=True),
    "attention_prefill": lambda: attention_prefill(28, 4, 128, 64, "float16", WEBGPU, 0.1),
    "attention_gated": lambda: attention_gated(28, 4, 128, 64, 512, 8, "float16", WEBGPU, 0.1),
    "attention_decode": lambda: attention_decode(28, 4, 128, 64, "float16", WEBGPU, 0.1, 8),
    "row_tiles": lambda: row_tiles(512),
    "block_representatives": lambda: block_representatives(4, 128, 64, 8, "float16", WEBGPU),
    "observe": lambda: observe(28, 4, 128, 64, 512, 8, "float16", WEBGPU, *_FORMS["code"]),
    "observe_paper": lambda: observe(32, 4, 256, 64, 512, 32, "float32", WEBGPU, *_FORMS["paper"]),
    "select_blocks": lambda: select_blocks(4, 512, 8, WEBGPU),
    "window_scores": lambda: window_scores(28, 4, 128, 64, 32, "float16", WEBGPU, 0.1),
    "select_entries": lambda: select_entries(4, WEBGPU),
    "compact": lambda: compact(4, 128, 64, "float32", WEBGPU),
}


@pytest.mark.parametrize("name", _KERNELS)
def test_limits_of_webgpu(name):
    check_webgpu_limits(_KERNELS[name]())
