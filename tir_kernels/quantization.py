"""From the name of a quantization to the storage of weights, which depends on the target."""

import re

from runtime.errors import UserError
from tir_kernels.mlc_weights import PACKERS, mlc_storage
from tir_kernels.stored_weight import WeightStorage
from tir_kernels.weight_format import FORMATS, weight_format

_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
CONVERTERS = FORMATS | PACKERS  # by StoredTensor.format, what makes such a tensor


def weight_storage(quantization: str, target_kind: str) -> WeightStorage:
    """Packed panels on a CPU ("llvm"), MLC's layouts on a GPU; UserError for a quantization that the target lacks."""
    return weight_format(quantization) if target_kind == "llvm" else mlc_storage(quantization)


def default_quantization(target_kind: str) -> str:
    return "q4bf16_1" if target_kind == "llvm" else "q4f16_1"


def model_dtype(quantization: str) -> str:
    """Dtype of activations, plain parameters and cache: "float16" of ``q4f16_1``. UserError if the name has none."""
    found = re.fullmatch(r"q\d(f32|bf16|f16)(_\d)?", quantization)
    if found is None:
        raise UserError(f"Unknown quantization {quantization!r}: a name is like q4f16_1, q4bf16_1 or q0f32.")
    return _DTYPES[found[1]]
