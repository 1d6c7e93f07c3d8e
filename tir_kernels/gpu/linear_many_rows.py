"""Linear layers on matrix units, for many rows: the function, and which units there are."""

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import prim_func

from tir_kernels.mlc_weights import CODES_PER_WORD, GROUP
from tir_kernels.stored_weight import PLAIN

from .features import GPUFeatures
from .linear_mma import MMATile
from .linear_simdgroup import SimdgroupTile
from .linear_tile import DEPTH, LinearTile


def _form(dtype: str, gpu: GPUFeatures) -> type[LinearTile] | None:
    if gpu.tensor_cores and dtype in MMATile.dtypes:
        return MMATile
    if gpu.simdgroup_matrices and dtype in SimdgroupTile.dtypes:
        return SimdgroupTile
    return None


def has_matrix_units(k: int, dtype: str, gpu: GPUFeatures) -> bool:
    """Whether :func:`linear_many_rows` computes a layer of ``k`` input features."""
    return k % DEPTH == 0 and _form(dtype, gpu) is not None


def linear_many_rows(
    n: int,
    k: int,
    format_name: str,
    dtype: str,
    gpu: GPUFeatures,
    *,
    bias: bool,
    residual: bool,
    out_dtype: str,
) -> tirx.PrimFunc:
    """The parameters and the outputs of :func:`tir_kernels.gpu.linear.linear`, for any number of rows.

    Only if :func:`has_matrix_units`.
    """
    form = _form(dtype, gpu)
    with IRBuilder() as builder:
        with prim_func(s_tir=True):
            T.func_name("linear")
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
            names = ["x", *(["weight"] if format_name == PLAIN else ["q_weight", "q_scale"])]
            names += [name for name, used in (("bias", bias), ("residual", residual)) if used]
            handles = {name: T.arg(name, T.handle()) for name in [*names, "out"]}
            m, rows, features = T.int64(), T.int64(n), T.int64(k)
            shapes = {
                "x": (m, features),
                "weight": (rows, features),
                "q_weight": (rows, T.int64(k // CODES_PER_WORD)),
                "q_scale": (rows, T.int64(k // GROUP)),
                "bias": (rows,),
                "residual": (m, rows),
                "out": (m, rows),
            }
            dtypes = {"q_weight": "uint32", "out": out_dtype}
            buffers = {
                name: T.match_buffer(handle, shapes[name], dtypes.get(name, dtype)) for name, handle in handles.items()
            }
            with T.sblock("root"):
                T.reads()
                T.writes()
                with (
                    T.thread_binding(T.ceildiv(m, form.tile), thread="blockIdx.x") as block_row,
                    T.thread_binding(-(-n // form.tile), thread="blockIdx.y") as block_column,
                    T.thread_binding(form.threads, thread="threadIdx.x") as thread,
                    T.sblock("tile"),
                ):
                    T.reads()
                    T.writes()
                    # TVM would add barriers: it does not see that two stages, or the parts of two warps, are apart.
                    with T.attr(0, "hand_threaded", 1):
                        form(buffers, n, k, dtype, out_dtype).emit(m, block_row, block_column, thread)
    return builder.get()
