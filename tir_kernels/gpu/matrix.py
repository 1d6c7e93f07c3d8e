"""A stored matrix in a tensor expression: what linear layers and embeddings read."""

from tvm import te, tirx

from tir_kernels.mlc_weights import CODES_PER_WORD, GROUP, ZERO_CODE
from tir_kernels.stored_weight import PLAIN

_FLOAT32_STEP_1 = 0x4B000000  # bits of 2**23: the float32 with these bits or a small number q is 2**23 + q


def code_value(code: tirx.Expr) -> tirx.Expr:
    """What a uint32 code stands for, before its scale: code - 7 in float32."""
    # A conversion of integers is slow on every GPU.
    shifted = tirx.reinterpret("float32", code | tirx.const(_FLOAT32_STEP_1, "uint32"))
    return shifted - tirx.const(2**23 + ZERO_CODE, "float32")


class Matrix:
    """W [n, k] as tir_kernels/mlc_weights.py stores it for activations of ``dtype``.

    tensors : placeholders, the parameters of a function that reads the matrix.
    """

    def __init__(self, n: int, k: int, format_name: str, dtype: str) -> None:
        self.n, self.k, self.dtype = n, k, dtype
        if format_name == PLAIN:
            self.tensors = [te.placeholder((n, k), dtype, "weight")]
        elif format_name == "q4":
            groups = -(-k // GROUP)
            words = te.placeholder((n, groups * GROUP // CODES_PER_WORD), "uint32", "q_weight")
            self.tensors = [words, te.placeholder((n, groups), dtype, "q_scale")]
        else:
            raise ValueError(f"GPU kernels have no weight format {format_name}")

    def float32(self, row, column) -> tirx.Expr:
        """An element, exactly."""
        if len(self.tensors) == 1:
            return self.tensors[0][row, column].astype("float32")
        words, scales = self.tensors
        shift = (column % CODES_PER_WORD * 4).astype("uint32")
        code = (words[row, column // CODES_PER_WORD] >> shift) & tirx.const(15, "uint32")
        return code_value(code) * scales[row, column // GROUP].astype("float32")

    def rounded(self) -> te.Tensor:
        """The whole matrix in ``dtype``; the name is what dlight's rules know it by."""
        if len(self.tensors) == 1:
            return self.tensors[0]
        return te.compute((self.n, self.k), lambda i, j: self.float32(i, j).astype(self.dtype), name="dequantize")
