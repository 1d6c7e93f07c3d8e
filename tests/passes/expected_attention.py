"""What ExplicitAttention makes of the modules in test_explicit_attention.py, built by hand with the block builder."""

import tvm
from tvm import relax

from tir_kernels.rope_scaling import inv_freq


def table(ndim: int, dtype: str = "int32"):
    return relax.TensorType(dtype=dtype, ndim=ndim)


class ExpectedFunction:
    """Builds the rewritten ``main`` of ``before(rows)`` by hand; it calls the kernels of ``after``."""

    def __init__(self, after: tvm.IRModule, keeps_window: bool, batch_shape, int8_pages: bool):
        self.after = after
        self.keeps_window = keeps_window
        self.int8_pages = int8_pages
        self.builder = relax.BlockBuilder()
        self.n = tvm.tirx.Var("n", "int64")
        self.x = relax.Var("x", relax.TensorType(batch_shape(self.n), "bfloat16"))
        self.kv = relax.Var("kv", relax.AnyType())
        self.q_type = relax.TensorType((self.n, 8, 32), "bfloat16")
        self.sizes = {}
        self.tables = None

    def kernel(self, name):
        return self.after.get_global_var(name)

    def ask(self, function, types, *args):
        """The fields of what the cache returns; a pair (shape, dtype) in ``types`` may name sizes that are matched
        where they come first."""
        new = [isinstance(ty, tuple) and any(isinstance(n, str) and n not in self.sizes for n in ty[0]) for ty in types]
        for ty in types:
            names = [size for size in ty[0] if isinstance(size, str)] if isinstance(ty, tuple) else []
            self.sizes.update({name: tvm.tirx.Var(name, "int64") for name in names if name not in self.sizes})
        full = [self.sized(*ty) if isinstance(ty, tuple) else ty for ty in types]
        returned = [table(ty.ndim, ty.dtype) if is_new else ty for ty, is_new in zip(full, new)]
        call = relax.call_pure_packed(function, self.kv, *args, ty_args=relax.TupleType(returned))
        result = self.builder.emit(call)
        fields = [self.builder.emit(result[i]) for i in range(len(types))]
        return [self.builder.match_cast(*pair) if is_new else pair[0] for *pair, is_new in zip(fields, full, new)]

    def sized(self, shape, dtype):
        return relax.TensorType([self.sizes.get(size, size) for size in shape], dtype)

    def inplace(self, kernel, args, outputs, types):
        result = self.builder.emit(relax.op.call_tir_inplace(self.kernel(kernel), args, outputs, types))
        return [self.builder.emit(result[i]) for i in range(len(types))] if len(types) > 1 else [result]

    def append(self, layer, qkv):
        pages = [(("pages", 16, 64, 2), "bfloat16"), (("pages", 32, 32, 2), "bfloat16")]
        if self.int8_pages:
            pages = [(("pages", 9, 64, 4), "uint8"), (("pages", 18, 32, 4), "int8")]
        k, v, slots, *lists = self.ask(
            "kv_cache_layer", [*pages, table(2), table(2), table(1), table(2)], relax.prim_value(layer)
        )
        if not self.keeps_window:
            args, types = [qkv, self.cos_sin, slots, k, v], [self.q_type, k.ty, v.ty]
            q, k, v = self.inplace("rope_append", args, [-1, 3, 4], types)
            return q, k, v, lists
        window = [table(1), (("rows", 8, 32), "bfloat16")]
        query_slots, observed = self.ask("kv_cache_window", window, relax.prim_value(layer))
        args = [qkv, self.cos_sin, slots, query_slots, k, v, observed]
        types = [self.q_type, k.ty, v.ty, observed.ty]
        q, k, v, _ = self.inplace("rope_append", args, [-1, 4, 5, 6], types)
        return q, k, v, lists

    def dense(self, kernel, layer, qkv):
        q, k, v, lists = self.append(layer, qkv)
        return relax.call_tir(self.kernel(kernel), [q, k, v, self.query_indptr, self.tiles, *lists], self.q_type)

    def gate(self):
        work = [
            (("segments", 2, "blocks"), "float32"),
            (("segments", 2), "int32"),
            (("segments", 2, "blocks"), "int32"),
        ]
        return self.ask("kv_cache_gate", [table(2), table(2), table(2), *work])

    def gated(self, layer, qkv, observe):
        """Block size 8: 16 columns of representatives a page. ``observe`` names the kernel: first layer or later."""
        q, k, v, (indptr, indices, lengths) = self.append(layer, qkv)
        if self.tables is None:
            self.tables = self.gate()
        segments, tiles, ranges, scores, counts, lists = self.tables
        types = [(("pages", 16, 16, 2), "bfloat16"), (("gates", 2, 4), "float32"), table(1, "float32")]
        representatives, gates, parameters = self.ask("kv_cache_layer_gate", types, relax.prim_value(layer))
        args = [k, indptr, indices, lengths, ranges, representatives]
        (representatives,) = self.inplace("block_representatives", args, [5], [representatives.ty])
        args = [q, representatives, self.query_indptr, indptr, indices, segments, parameters, scores, gates]
        scores, gates = self.inplace(observe, args, [7, 8], [scores.ty, gates.ty])
        args = [scores, gates, segments, parameters, counts, lists]
        counts, lists = self.inplace("select_blocks", args, [4, 5], [counts.ty, lists.ty])
        self.tables[3:] = [scores, counts, lists]
        args = [q, k, v, self.query_indptr, tiles, indptr, indices, lengths, segments, counts, lists]
        return relax.call_tir(self.kernel("attention_gated"), args, self.q_type)

    def build(self, *layers):
        """``layers`` are functions of qkv that return a layer's attention."""
        builder = self.builder
        frequencies, _ = inv_freq(10000.0, 32, {"rope_type": "linear", "factor": 2.0})
        with builder.function("main", [self.x, self.kv]):
            with builder.dataflow():
                qkv = builder.emit(relax.op.reshape(self.x, (self.n, 12, 32)))
                step = self.ask("kv_cache_step", [table(1), table(1), table(2)])
                positions, self.query_indptr, self.tiles = step
                self.cos_sin = builder.emit(
                    relax.call_tir(
                        self.kernel("rope_table"),
                        [positions, relax.const(frequencies, "float32")],
                        relax.TensorType((self.n, 32), "float32"),
                    )
                )
                if len(layers) == 1:
                    result = builder.emit_output(layers[0](qkv))
                else:
                    outputs = [builder.emit(layer(qkv)) for layer in layers]
                    result = builder.emit_output(relax.op.add(*outputs))
            builder.emit_func_output(result)
        return builder.finalize()["main"]
