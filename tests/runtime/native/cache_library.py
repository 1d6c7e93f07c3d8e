"""A model library with the KV cache and nothing else: appends K and V and reads them back, through the tables only."""

from collections.abc import Sequence
from pathlib import Path

import tvm
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS, PAGE
from tvm import relax
from tvm.s_tir import dlight as dl
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from runtime.native.build import link_options

ENGINE_NAMES = ["max_batch", "max_total_seq_len", "prefill_chunk", "page_size", "support_sliding_window"]


def build_cache_library(
    output: Path,
    dtype: str,
    cache_object: Path,
    kernels: Sequence[PrimFunc] = (),
    target: tvm.target.Target = tvm.target.Target("llvm"),
) -> Path:
    """Writes a library with ``create_tir_paged_kv_cache``, ``append(k, v, kv)`` and ``read(kv)`` to ``output``.

    append: k, v [layers, n, G, d] go to the slots of the open step. read: a tuple (k, v) a layer, each
    [B, G, entries, d]: what the step's sequences hold, found through page_indptr, page_indices and kv_lengths,
    zero past a sequence's length. ``kernels`` are linked in for the cache to call.
    """
    executable = build_executable(dtype, target, kernels)
    executable.export_library(str(output), addons=[str(cache_object)], options=link_options())
    return output


def build_executable(dtype: str, target: tvm.target.Target, kernels: Sequence[PrimFunc] = ()) -> relax.VMExecutable:
    """The library's functions without the cache: it is linked in at export."""
    module = _module(dtype)
    if target.kind.name == "cuda":
        with target:
            module = dl.ApplyDefaultSchedule(dl.gpu.Fallback())(module)
    for kernel in kernels:
        module[kernel.attrs["global_symbol"]] = kernel
    return relax.build(module, target, exec_mode="bytecode")


def _kernels(dtype: str):
    d, page, heads = HEAD_DIM, PAGE, KV_HEADS
    pair = 1 if dtype == "float32" else 2

    @T.prim_func(s_tir=True)
    def append_kernel(vk: T.handle, vv: T.handle, vs: T.handle, vkp: T.handle, vvp: T.handle, layer: T.int64):
        n = T.int64()
        pages = T.int64()
        k = T.match_buffer(vk, (LAYERS, n, heads, d), dtype)
        v = T.match_buffer(vv, (LAYERS, n, heads, d), dtype)
        slots = T.match_buffer(vs, (heads, n), "int32")
        k_pages = T.match_buffer(vkp, (pages, d // pair, page, pair), dtype)
        v_pages = T.match_buffer(vvp, (pages, page // pair, d, pair), dtype)
        for h, i, c in T.grid(heads, n, d):
            with T.sblock("append"):
                vh, vi, vc = T.axis.remap("SSS", [h, i, c])
                T.reads(slots[vh, vi], k[layer, vi, vh, vc], v[layer, vi, vh, vc])
                T.writes(
                    k_pages[0:pages, 0 : d // pair, 0:page, 0:pair],
                    v_pages[0:pages, 0 : page // pair, 0:d, 0:pair],
                )
                k_pages[slots[vh, vi] // page, vc // pair, slots[vh, vi] % page, vc % pair] = k[layer, vi, vh, vc]
                v_pages[slots[vh, vi] // page, slots[vh, vi] % page // pair, vc, slots[vh, vi] % page % pair] = v[
                    layer, vi, vh, vc
                ]

    @T.prim_func(s_tir=True)
    def read_kernel(
        vkp: T.handle, vvp: T.handle, vptr: T.handle, vidx: T.handle, vlen: T.handle, vk: T.handle, vv: T.handle
    ):
        pages = T.int64()
        batch = T.int64()
        total = T.int64()
        k_pages = T.match_buffer(vkp, (pages, d // pair, page, pair), dtype)
        v_pages = T.match_buffer(vvp, (pages, page // pair, d, pair), dtype)
        indptr = T.match_buffer(vptr, (heads, batch + 1), "int32")
        indices = T.match_buffer(vidx, (total,), "int32")
        lengths = T.match_buffer(vlen, (heads, batch), "int32")
        k = T.match_buffer(vk, (batch, heads, total * page, d), dtype)
        v = T.match_buffer(vv, (batch, heads, total * page, d), dtype)
        for b, h, t, c in T.grid(batch, heads, total * page, d):
            with T.sblock("read"):
                vb, vh, vt, vc = T.axis.remap("SSSS", [b, h, t, c])
                T.reads(
                    k_pages[0:pages, 0 : d // pair, 0:page, 0:pair],
                    v_pages[0:pages, 0 : page // pair, 0:d, 0:pair],
                    indptr[vh, vb],
                    indices[0:total],
                    lengths[vh, vb],
                )
                T.writes(k[vb, vh, vt, vc], v[vb, vh, vt, vc])
                k[vb, vh, vt, vc] = T.Cast(dtype, 0)
                v[vb, vh, vt, vc] = T.Cast(dtype, 0)
                if vt < T.Cast("int64", lengths[vh, vb]):
                    k[vb, vh, vt, vc] = k_pages[
                        indices[T.Cast("int64", indptr[vh, vb]) + vt // page], vc // pair, vt % page, vc % pair
                    ]
                    v[vb, vh, vt, vc] = v_pages[
                        indices[T.Cast("int64", indptr[vh, vb]) + vt // page], vt % page // pair, vc, vt % page % pair
                    ]

    return append_kernel, read_kernel


def _module(dtype: str) -> tvm.IRModule:
    d, page, heads = HEAD_DIM, PAGE, KV_HEADS
    pair = 1 if dtype == "float32" else 2
    append_kernel, read_kernel = _kernels(dtype)
    bb = relax.BlockBuilder()
    append_var, read_var = bb.add_func(append_kernel, "append_kernel"), bb.add_func(read_kernel, "read_kernel")

    sizes = [tvm.tirx.Var(name, "int64") for name in ENGINE_NAMES]
    params = [relax.Var(f"{size.name}_", relax.ShapeType([size])) for size in sizes]
    with bb.function("create_tir_paged_kv_cache", params):
        model = relax.ShapeExpr([LAYERS, HEADS, KV_HEADS, HEAD_DIM, PAGE])
        cache = relax.call_pure_packed(
            "kv_cache_create",
            relax.ShapeExpr(sizes),
            model,
            tvm.ir.StringImm(dtype),
            tvm.ir.StringImm(""),
            bb.emit(relax.op.builtin.alloc_tensor(relax.ShapeExpr([1]), "float32", 0)),
            ty_args=relax.AnyType(),
        )
        bb.emit_func_output(bb.emit(cache))

    def layer_tensors(kv: relax.Var, layer: int) -> list[relax.Expr]:
        dims = {name: tvm.tirx.Var(name, "int64") for name in ("pages", "n", "batch", "total")}
        types = [
            relax.TensorType((dims["pages"], d // pair, page, pair), dtype),
            relax.TensorType((dims["pages"], page // pair, d, pair), dtype),
            relax.TensorType((heads, dims["n"]), "int32"),
            relax.TensorType((heads, dims["batch"] + 1), "int32"),
            relax.TensorType((dims["total"],), "int32"),
            relax.TensorType((heads, dims["batch"]), "int32"),
        ]
        loose = relax.TupleType([relax.TensorType(ndim=t.ndim, dtype=t.dtype) for t in types])
        tensors = bb.emit(relax.call_pure_packed("kv_cache_layer", kv, relax.prim_value(layer), ty_args=loose))
        # kv_lengths comes before page_indptr, so that `batch` is bound when `batch + 1` is checked.
        order = [0, 1, 2, 5, 3, 4]
        cast = {i: bb.match_cast(bb.emit(relax.TupleGetItem(tensors, i)), types[i]) for i in order}
        return [cast[i] for i in range(6)]

    n = tvm.tirx.Var("n", "int64")
    k, v = (relax.Var(name, relax.TensorType((LAYERS, n, heads, d), dtype)) for name in ("k", "v"))
    kv = relax.Var("kv", relax.AnyType())
    with bb.function("append", [k, v, kv]):
        outs = []
        for layer in range(LAYERS):
            k_pages, v_pages, slots, *_ = layer_tensors(kv, layer)
            call = relax.op.call_tir_inplace(
                append_var,
                (k, v, slots, k_pages, v_pages, relax.prim_value(layer)),
                [3, 4],
                [k_pages.ty, v_pages.ty],
            )
            outs.append(bb.emit(call))
        bb.emit_func_output(relax.Tuple(outs))

    kv = relax.Var("kv", relax.AnyType())
    with bb.function("read", [kv]):
        outs = []
        for layer in range(LAYERS):
            k_pages, v_pages, _, indptr, indices, lengths = layer_tensors(kv, layer)
            shape = (lengths.ty.shape[1], heads, indices.ty.shape[0] * page, d)
            out = relax.TensorType(shape, dtype)
            call = relax.call_tir(read_var, (k_pages, v_pages, indptr, indices, lengths), [out, out])
            outs.append(bb.emit(call))
        bb.emit_func_output(relax.Tuple(outs))

    kv = relax.Var("kv", relax.AnyType())
    with bb.function("step", [kv]):
        tables = relax.TupleType([relax.TensorType(ndim=ndim, dtype="int32") for ndim in (1, 1, 2)])
        bb.emit_func_output(bb.emit(relax.call_pure_packed("kv_cache_step", kv, ty_args=tables)))
    return bb.get()
