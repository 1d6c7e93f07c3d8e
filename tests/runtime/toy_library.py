"""A model library with the whole MLC ABI and a model of three lines, for tests of the runtime without the compiler.

The model: logits = W @ table[last token] + position * drift. It uses the real KV cache object, so a wrong length or a
wrong order of calls changes the positions, and with them the answer.
"""

import json
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.script import tirx as T

from runtime.native.build import build_kv_cache_object, link_options
from runtime.policy import make_policy

VOCAB, HIDDEN, CHUNK, CONTEXT = 300, 16, 8, 64
# Steps are plain chunks, since a chunk is shorter than a segment, and no sequence grows to where it is compressed.
POLICY = make_policy()
PARAM_SHAPES = {"table": (VOCAB, HIDDEN), "weight": (VOCAB, HIDDEN), "drift": (VOCAB,)}


def toy_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights; drift is large enough that the position decides too."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in PARAM_SHAPES.items()}


def toy_logits(weights: dict[str, np.ndarray], token_ids: list[int]) -> np.ndarray:
    """The oracle: logits [V] after ``token_ids``."""
    position = len(token_ids) - 1
    return weights["weight"] @ weights["table"][token_ids[-1]] + position * weights["drift"]


def toy_metadata() -> dict:
    """What the library says about itself."""
    params = [{"name": name, "shape": list(shape), "dtype": "float32"} for name, shape in PARAM_SHAPES.items()]
    return {
        "model_type": "toy",
        "quantization": "q0f32",
        "context_window_size": CONTEXT,
        "prefill_chunk_size": CHUNK,
        "max_batch_size": 1,
        "active_vocab_size": None,
        "kv_cache": {"num_hidden_layers": 1, "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1},
        "params": params,
        "weight_format": "f32_n32",
        "policy": POLICY.to_dict(),
    }


def write_toy_folder(folder: Path, weights: dict[str, np.ndarray]) -> None:
    """mlc-chat-config.json, tensor-cache.json and two shards; no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "toy", "quantization": "q0f32", "vocab_size": VOCAB, "context_window_size": CONTEXT}
    config |= {"weight_format": "f32_n32", "eos_token_id": 0, "temperature": 0.0}
    (folder / "mlc-chat-config.json").write_text(json.dumps(config))
    shards = []
    for number, names in enumerate((["drift", "table"], ["weight"])):
        records, data = [], b""
        for name in names:
            # 4 bytes before each tensor: its place in the file need not be aligned.
            data += b"\xff" * 4
            records.append({"name": name, "shape": list(PARAM_SHAPES[name]), "dtype": "float32", "format": "raw"})
            records[-1] |= {"nbytes": weights[name].nbytes, "byteOffset": len(data)}
            data += weights[name].tobytes()
        path = folder / f"params_shard_{number}.bin"
        path.write_bytes(data)
        shards.append({"dataPath": path.name, "format": "raw-shard", "nbytes": len(data), "records": records})
    cache = {"metadata": {"weight_format": "f32_n32"}, "records": shards}
    (folder / "tensor-cache.json").write_text(json.dumps(cache))


def build_toy_library(output: Path, target: tvm.target.Target = tvm.target.Target("llvm")) -> Path:
    """Compile the library to ``output``."""
    output.parent.mkdir(parents=True, exist_ok=True)
    kv_cache = build_kv_cache_object(output.with_suffix(".o"))
    executable = relax.build(_module(target), target, exec_mode="bytecode")
    executable.export_library(str(output), addons=[str(kv_cache)], options=link_options())
    return output


def _penalty_kernels(target: tvm.target.Target) -> dict[str, tvm.tirx.PrimFunc]:
    on_gpu = target.kind.name != "llvm"
    tokens = (lambda n: T.thread_binding(n, "blockIdx.x")) if on_gpu else T.serial

    @T.prim_func(s_tir=True)
    def apply_logit_bias(logits: T.handle, rows: T.handle, ids: T.handle, bias: T.handle):
        n = T.int64()
        x = T.match_buffer(logits, (1, VOCAB), "float32")
        r = T.match_buffer(rows, (n,), "int32")
        i = T.match_buffer(ids, (n,), "int32")
        b = T.match_buffer(bias, (n,), "float32")
        for t in tokens(n):
            with T.sblock("bias"):
                v = T.axis.opaque(n, t)
                x[r[v], i[v]] = x[r[v], i[v]] + b[v]

    @T.prim_func(s_tir=True)
    def apply_penalty(logits: T.handle, seqs: T.handle, rows: T.handle, ids: T.handle, cnt: T.handle, pen: T.handle):
        n = T.int64()
        x = T.match_buffer(logits, (1, VOCAB), "float32")
        s = T.match_buffer(seqs, (1,), "int32")
        r = T.match_buffer(rows, (n,), "int32")
        i = T.match_buffer(ids, (n,), "int32")
        c = T.match_buffer(cnt, (n,), "int32")
        p = T.match_buffer(pen, (1, 3), "float32")
        for t in tokens(n):
            with T.sblock("penalty"):
                v = T.axis.opaque(n, t)
                x[s[r[v]], i[v]] = x[s[r[v]], i[v]] - p[r[v], 0] - T.Cast("float32", c[v]) * p[r[v], 1]
                x[s[r[v]], i[v]] = T.if_then_else(
                    x[s[r[v]], i[v]] < 0.0, x[s[r[v]], i[v]] * p[r[v], 2], x[s[r[v]], i[v]] / p[r[v], 2]
                )

    kernels = {"apply_logit_bias_inplace": apply_logit_bias, "apply_penalty_inplace": apply_penalty}
    attributes = {"tirx.is_scheduled": True} if on_gpu else {}
    return {name: kernel.with_attrs({"global_symbol": name, **attributes}) for name, kernel in kernels.items()}


def _module(target: tvm.target.Target) -> tvm.IRModule:
    bb = relax.BlockBuilder(tvm.IRModule(_penalty_kernels(target)))
    f32 = lambda *shape: relax.TensorType(shape, "float32")  # noqa: E731
    params_type = relax.TupleType([f32(*shape) for shape in PARAM_SHAPES.values()])

    names = ["max_batch", "max_total_seq_len", "prefill_chunk", "page_size", "support_sliding_window"]
    sizes = [tvm.tirx.Var(name, "int64") for name in names]
    with bb.function("create_tir_paged_kv_cache", [relax.Var(f"{s.name}_", relax.ShapeType([s])) for s in sizes]):
        texts = (tvm.ir.StringImm("float32"), tvm.ir.StringImm(POLICY.cache_text()))  # dtype, policy
        place = bb.emit(relax.op.builtin.alloc_tensor(relax.ShapeExpr([1]), "float32", 0))
        arguments = (relax.ShapeExpr(sizes), relax.ShapeExpr([1, 2, 1, 8, 64]), *texts, place)
        bb.emit_func_output(bb.emit(relax.call_pure_packed("kv_cache_create", *arguments, ty_args=relax.AnyType())))

    n = tvm.tirx.Var("n", "int64")
    ids, params = relax.Var("ids", relax.TensorType((n,), "int32")), relax.Var("params", params_type)
    with bb.function("embed", [ids, params]):
        bb.emit_func_output(bb.emit(relax.op.take(relax.TupleGetItem(params, 0), ids, axis=0)))

    for name in ("prefill", "decode"):
        n = tvm.tirx.Var("n", "int64") if name == "prefill" else 1
        hidden, kv = relax.Var("hidden", f32(1, n, HIDDEN)), relax.Var("kv", relax.AnyType())
        params = relax.Var("params", params_type)
        with bb.function(name, [hidden, kv, params]):
            tables = relax.TupleType([relax.TensorType(ndim=ndim, dtype="int32") for ndim in (1, 1, 2)])
            step = bb.emit(relax.call_pure_packed("kv_cache_step", kv, ty_args=tables))
            positions = bb.match_cast(relax.TupleGetItem(step, 0), relax.TensorType((n,), "int32"))
            last = relax.op.strided_slice(hidden, axes=[1], begin=[n - 1], end=[n])
            last = bb.match_cast(bb.emit(last), f32(1, 1, HIDDEN))
            position = relax.op.strided_slice(positions, axes=[0], begin=[n - 1], end=[n])
            position = bb.match_cast(bb.emit(position), relax.TensorType((1,), "int32"))
            drift = relax.op.astype(position, "float32") * relax.TupleGetItem(params, 2)
            logits = relax.op.matmul(last, relax.op.permute_dims(relax.TupleGetItem(params, 1))) + drift
            bb.emit_func_output(relax.Tuple([bb.emit(logits), kv]))

    logits, temperature = relax.Var("logits", f32(1, 1, VOCAB)), relax.Var("temperature", f32(1))
    with bb.function("softmax_with_temperature", [logits, temperature]):
        bb.emit_func_output(bb.emit(relax.op.nn.softmax(logits / temperature)))

    with bb.function("_metadata", []):
        bb.emit_func_output(tvm.ir.StringImm(json.dumps(toy_metadata() | {"target": str(target)})))
    return bb.get()
