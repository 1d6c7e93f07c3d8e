import json

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.attach_metadata import AttachMetadata, planned_bytes
from passes.attach_variable_bounds import AttachVariableBounds


@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor(("seq_len", 256), "float32")):
        seq_len = T.int64()
        with R.dataflow():
            a = R.add(x, x)
            b = R.multiply(a, x)
            c = R.add(b, x)
            d = R.multiply(c, x)
            R.output(d)
        return d


def planned(bounds: dict[str, int]) -> tvm.IRModule:
    return tvm.transform.Sequential(
        [
            AttachVariableBounds(bounds, {}),
            relax.transform.LegalizeOps(),
            relax.transform.ToNonDataflow(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )(Module)


def test_memory_is_bounded_by_the_chunk_and_results_are_not_counted():
    # a, b and c live in two buffers in turns; d is the result.
    assert planned_bytes(planned({"seq_len": 64})["main"]) == 2 * 64 * 256 * 4


def test_memory_without_a_bound_is_an_error():
    with pytest.raises(ValueError, match="no upper bound"):
        planned_bytes(planned({})["main"])


def test_metadata_is_the_json_text_that_the_function_returns():
    metadata = {"model_type": "llama", "params": [{"name": "w", "shape": [2, 3]}]}
    mod = AttachMetadata(metadata)(planned({"seq_len": 64}))
    usage = {"main": 2 * 64 * 256 * 4}
    expected = {
        "model_type": "llama",
        "params": [{"name": "w", "shape": [2, 3]}],
        "memory_usage": usage,
        "temporary_bytes": usage["main"],
    }
    assert metadata == expected
    assert json.loads(mod["_metadata"].body.body.value) == expected
