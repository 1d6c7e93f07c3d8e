"""How a matrix is stored, as the passes see it: the same for packed panels on CPUs and MLC's layouts on GPUs."""

from dataclasses import dataclass
from typing import Protocol

PLAIN = "plain"  # the format of a tensor that is stored row by row in its dtype


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a parameter.

    name : the last part of its name in the weight file, "weight" or, of quantized weights, "q_weight" and "q_scale".
    format : what conversion makes it with, a key of tir_kernels.weight_format.FORMATS or :data:`PLAIN`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str


class WeightStorage(Protocol):
    """The storage of all matrices of a library.

    name : recorded in the descriptions of library and weights, which must agree.
    kernel_format : the argument ``format_name`` of the linear and embedding kernels, which take the tensors in order.
    """

    @property
    def name(self) -> str: ...

    @property
    def kernel_format(self) -> str: ...

    def tensors(self, n: int, k: int) -> tuple[StoredTensor, ...]:
        """The tensors that hold W[n, k]; UserError if the sizes do not fit."""
        ...
