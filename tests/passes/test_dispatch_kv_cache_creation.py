import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.attention_spec import AttentionSpec, attention_spec
from passes.dispatch_kv_cache_creation import DispatchKVCacheCreation
from runtime.policy import make_policy


def creation_module(attn_kind: str = "mha", rope_mode: int = 1, rope_scale: int = 1, v_head_dim: int = 32):
    @I.ir_module
    class Module:
        @R.function
        def create_paged_kv_cache(
            max_batch_size_: R.Shape(["max_batch_size"]),
            max_total_seq_len_: R.Shape(["max_total_seq_len"]),
            prefill_chunk_size_: R.Shape(["prefill_chunk_size"]),
            page_size_: R.Shape(["page_size"]),
            support_sliding_window_: R.Shape(["support_sliding_window"]),
        ) -> R.Any:
            max_batch_size = T.int64()
            max_total_seq_len = T.int64()
            prefill_chunk_size = T.int64()
            page_size = T.int64()
            support_sliding_window = T.int64()
            with R.dataflow():
                cache = R.call_pure_packed(
                    "mlc.create_paged_kv_cache_generic",
                    R.str(attn_kind),
                    R.shape([max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window]),
                    R.shape([0, 6]),
                    R.prim_value(6),
                    R.prim_value(8),
                    R.prim_value(2),
                    R.prim_value(32),
                    R.prim_value(v_head_dim),
                    R.prim_value(0),
                    R.prim_value(0),
                    R.prim_value(rope_mode),
                    R.prim_value(rope_scale),
                    R.prim_value(10000),
                    R.str('{"rope_type": "linear", "factor": 2.0}'),
                    R.prim_value(0),
                    R.prim_value(32),
                    R.prim_value(0),
                    R.dtype("bfloat16"),
                    ty_args=(R.Any,),
                )
                R.output(cache)
            return cache

    return Module


@I.ir_module
class Expected:
    @R.function
    def create_tir_paged_kv_cache(
        max_batch_size_: R.Shape(["max_batch_size"]),
        max_total_seq_len_: R.Shape(["max_total_seq_len"]),
        prefill_chunk_size_: R.Shape(["prefill_chunk_size"]),
        page_size_: R.Shape(["page_size"]),
        support_sliding_window_: R.Shape(["support_sliding_window"]),
    ) -> R.Any:
        max_batch_size = T.int64()
        max_total_seq_len = T.int64()
        prefill_chunk_size = T.int64()
        page_size = T.int64()
        support_sliding_window = T.int64()
        place = R.builtin.alloc_tensor(R.shape([1]), R.dtype("float32"), R.prim_value(0))
        cache = R.call_pure_packed(
            "kv_cache_create",
            R.shape([max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window]),
            R.shape([6, 8, 2, 32, 64]),
            R.str("bfloat16"),
            R.str("prefill=entropy;block_size=16"),
            place,
            ty_args=(R.Any,),
        )
        return cache


def test_the_generic_creation_becomes_the_native_one():
    dispatch = DispatchKVCacheCreation("prefill=entropy;block_size=16")
    tvm.ir.assert_structural_equal(dispatch(creation_module()), Expected)


def test_spec_is_read_from_the_creation_call():
    spec = attention_spec(creation_module())
    assert spec == AttentionSpec(6, 8, 2, 32, 32, 10000.0, '{"rope_type": "linear", "factor": 2.0}', "bfloat16")
    assert spec.rope_scaling_dict == {"rope_type": "linear", "factor": 2.0}
    assert spec.kv_bytes_per_token(make_policy("dense", "latent")) == 2 * 6 * 2 * 32 * 2
    # 8-bit keys and values, and a float32 for each; the scales of 64 values take two rows of 32 words.
    assert spec.kv_bytes_per_token(make_policy("dense", "full", "kv_dtype=int8")) == 6 * 2 * (32 + 4 + 32 + 4)
    # A maximum and a minimum of 2 heads of 32 dimensions for each block of 16 tokens in 5 layers.
    assert (
        spec.kv_bytes_per_token(make_policy("entropy", "full", "block_size=16;layer_skip=1"))
        == 1536 + 2 * 5 * 2 * 32 * 2 // 16
    )


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"attn_kind": "mla"}, "mha"),
        ({"rope_mode": 2}, "RopeMode.NORMAL"),
        ({"rope_scale": 4}, "rope_scale"),
        ({"v_head_dim": 64}, "head_dim"),
    ],
)
def test_other_kinds_of_attention_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        attention_spec(creation_module(**fields))


def test_a_module_without_cache_creation_is_refused():
    with pytest.raises(ValueError, match="create_paged_kv_cache"):
        attention_spec(tvm.IRModule({}))
