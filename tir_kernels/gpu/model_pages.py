"""The pages that GPU kernels read and write."""

from runtime.errors import UserError
from tir_kernels.kv_pages import KVPages


def model_pages(head_dim: int, page_size: int, dtype: str, kv_dtype: str) -> KVPages:
    """Pages of the model's dtype. Raises UserError for 8-bit ones, which no GPU kernel knows."""
    if kv_dtype != "model":
        raise UserError(
            f"kv_dtype {kv_dtype} is for CPUs only: on a GPU the KV cache has the model's dtype (kv_dtype=model)"
        )
    return KVPages(head_dim, page_size, dtype)
