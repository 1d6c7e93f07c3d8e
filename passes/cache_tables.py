"""The calls by which a Relax function asks the KV cache object for its tables (runtime/native answers them)."""

from dataclasses import dataclass

from tvm import relax, tirx

from runtime.policy import Policy
from tir_kernels.kv_pages import KVPages

from .attention_spec import PAGE_SIZE, AttentionSpec


def _table(ndim: int, dtype: str = "int32") -> relax.TensorType:
    return relax.TensorType(dtype=dtype, ndim=ndim)


@dataclass(frozen=True)
class StepTables:
    """Once a function: int32 positions [n], query_indptr [B + 1] and tiles [T, 2]."""

    positions: relax.Expr
    query_indptr: relax.Expr
    tiles: relax.Expr


@dataclass(frozen=True)
class LayerTables:
    """Once a layer: its pages, and int32 append_slots [G, n], page_indptr [G, B + 1], page_indices [..] and
    kv_lengths [G, B]."""

    k_pages: relax.Expr
    v_pages: relax.Expr
    append_slots: relax.Expr
    page_indptr: relax.Expr
    page_indices: relax.Expr
    kv_lengths: relax.Expr


@dataclass
class GateTables:
    """Once a gated function: int32 segments [S, 5], gated_tiles [T, 4], block_ranges [B, 2], and
    the work space that flows from layer to layer: float32 scores [S, G, N], int32 block_counts [S, G] and
    block_lists [S, G, N]."""

    segments: relax.Expr
    gated_tiles: relax.Expr
    block_ranges: relax.Expr
    scores: relax.Expr
    block_counts: relax.Expr
    block_lists: relax.Expr


@dataclass(frozen=True)
class _Sized:
    """A tensor type some of whose sizes are known by name only, until the first tensor that has them is there."""

    shape: tuple[int | str, ...]
    dtype: str

    def known(self, sizes: dict[str, tirx.Var]) -> relax.TensorType:
        if all(isinstance(size, int) or size in sizes for size in self.shape):
            return self.bind(sizes)
        return _table(len(self.shape), self.dtype)

    def bind(self, sizes: dict[str, tirx.Var]) -> relax.TensorType:
        for size in self.shape:
            if isinstance(size, str) and size not in sizes:
                sizes[size] = tirx.Var(size, "int64")
        return relax.TensorType([sizes.get(size, size) for size in self.shape], self.dtype)


class CacheTables:
    """Emits the calls for one function on ``builder``. Sizes that all layers share are matched once."""

    def __init__(self, builder: relax.BlockBuilder, spec: AttentionSpec, policy: Policy, kv_cache: relax.Expr) -> None:
        self._builder = builder
        self._spec = spec
        self._policy = policy
        self._kv_cache = kv_cache
        self._sizes: dict[str, tirx.Var] = {}

    def step(self) -> StepTables:
        return StepTables(*self._call("kv_cache_step", [_table(1), _table(1), _table(2)], "step"))

    def layer(self, layer: relax.Expr) -> LayerTables:
        pages = self._spec.pages(self._policy)
        k_pages = _Sized(pages.key_shape("num_head_pages"), pages.key_dtype)
        v_pages = _Sized(pages.value_shape("num_head_pages"), pages.value_dtype)
        types = [k_pages, v_pages, _table(2), _table(2), _table(1)]
        return LayerTables(*self._call("kv_cache_layer", [*types, _table(2)], "layer", layer))

    def window(self, layer: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
        """(query_slots int32 [n], observed [window rows, H, d]) of a layer."""
        observed = ("num_window_rows", self._spec.num_attention_heads, self._spec.head_dim)
        types = [_table(1), _Sized(observed, self._spec.dtype)]
        return tuple(self._call("kv_cache_window", types, "window", layer))

    def gate(self) -> GateTables:
        heads = self._spec.num_key_value_heads
        rows = ("num_segments", heads)
        types = [
            _table(2),
            _table(2),
            _table(2),
            _Sized((*rows, "max_blocks"), "float32"),
            _Sized(rows, "int32"),
            _Sized((*rows, "max_blocks"), "int32"),
        ]
        return GateTables(*self._call("kv_cache_gate", types, "gate"))

    def layer_gate(self, layer: relax.Expr) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
        """(representatives, float32 gates [B + S, G, 4], float32 parameters [8]) of a layer."""
        spec, columns = self._spec, 2 * PAGE_SIZE // self._policy.block_size
        pair = KVPages(spec.head_dim, PAGE_SIZE, spec.dtype).pair
        representatives = ("num_head_pages", spec.head_dim // pair, columns, pair)
        gates = ("num_gates", spec.num_key_value_heads, 4)
        types = [_Sized(representatives, spec.dtype), _Sized(gates, "float32"), _table(1, "float32")]
        return tuple(self._call("kv_cache_layer_gate", types, "layer_gate", layer))

    def _call(self, function: str, types: list, name: str, *args: relax.Expr) -> list[relax.Expr]:
        """The fields of the tuple that ``function`` returns; sizes not seen before are bound by a match_cast."""
        builder = self._builder
        known = [ty.known(self._sizes) if isinstance(ty, _Sized) else ty for ty in types]
        call = relax.call_pure_packed(function, self._kv_cache, *args, ty_args=relax.TupleType(known))
        result = builder.emit(call, name)
        fields = [builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]
        for i, ty in enumerate(types):
            if isinstance(ty, _Sized) and known[i].shape is None:
                fields[i] = builder.match_cast(fields[i], ty.bind(self._sizes))
        return fields
