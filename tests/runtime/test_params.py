import json

import numpy as np
import pytest
from toy_library import PARAM_SHAPES, toy_metadata, toy_weights

from runtime.artifact import parse_library_metadata, read_chat_config
from runtime.errors import UserError
from runtime.params import load_params


def load(folder, **changes):
    library = parse_library_metadata(json.dumps(toy_metadata() | changes), folder)
    return load_params(folder, read_chat_config(folder), library, folder / "toy.so")


def change_cache(folder, change) -> None:
    path = folder / "tensor-cache.json"
    cache = json.loads(path.read_text())
    change(cache)
    path.write_text(json.dumps(cache))


def test_values_and_alignment(toy_copy):
    params = load(toy_copy)
    for tensor, (name, expected) in zip(params, toy_weights().items(), strict=True):
        array = np.from_dlpack(tensor)
        np.testing.assert_array_equal(array, expected, err_msg=name)
        assert array.ctypes.data % 64 == 0


def test_order_is_the_library_s(toy_copy):
    specs = toy_metadata()["params"]
    params = load(toy_copy, params=specs[::-1])
    assert [tuple(tensor.shape) for tensor in params] == list(PARAM_SHAPES.values())[::-1]


def test_bfloat16(toy_copy):
    change_cache(toy_copy, lambda cache: cache["records"][0]["records"][1].update(dtype="bfloat16", shape=[300, 32]))
    specs = toy_metadata()["params"]
    specs[0].update(dtype="bfloat16", shape=[300, 32])
    tensor = load(toy_copy, params=specs)[0]
    assert (str(tensor.dtype), tuple(tensor.shape)) == ("bfloat16", (300, 32))


def test_library_for_another_model(toy_copy):
    for key, value in (("model_type", "llama"), ("quantization", "q4bf16_1")):
        with pytest.raises(UserError, match=f"do not belong together: the library has {key} {value}, the folder"):
            load(toy_copy, **{key: value})
    specs = toy_metadata()["params"]
    specs[1]["shape"] = [300, 17]
    message = r"parameter weight is float32 \[300, 16\] in the folder, float32 \[300, 17\] in the library"
    with pytest.raises(UserError, match=message):
        load(toy_copy, params=specs)
    with pytest.raises(UserError, match="the folder has no parameter model.norm.weight"):
        load(toy_copy, params=[*toy_metadata()["params"], {"name": "model.norm.weight", "shape": [1], "dtype": "int8"}])


def test_folder_with_an_output_projection_that_the_library_has_not(toy_copy):
    change_cache(toy_copy, lambda cache: cache["records"][0]["records"][1].update(name="lm_head.weight"))
    specs = toy_metadata()["params"]
    untied = [specs[0] | {"name": "lm_head.weight"}, *specs[1:]]
    assert len(load(toy_copy, params=untied)) == len(specs)
    with pytest.raises(UserError, match="uses the embedding as output projection, but .* has one of its own"):
        load(toy_copy, params=untied[1:])


def test_library_for_another_layout(toy_copy):
    with pytest.raises(UserError, match="wants weights packed as q4_n32g32, but those in .* are packed as f32_n32"):
        load(toy_copy, weight_format="q4_n32g32")


def test_folders_that_do_not_say_have_mlcs_layouts(toy_copy):
    """As mlc_llm convert_weight leaves them; a library of this project calls these layouts "mlc"."""
    change_cache(toy_copy, lambda cache: cache["metadata"].pop("weight_format"))
    for name in ("mlc", None):
        assert len(load(toy_copy, weight_format=name)) == len(PARAM_SHAPES)
    with pytest.raises(UserError, match="wants weights packed as f32_n32, but those in .* are packed as mlc"):
        load(toy_copy)


def test_format_that_needs_conversion(toy_copy):
    change_cache(toy_copy, lambda cache: cache["records"][1]["records"][0].update(format="f32-to-bf16"))
    with pytest.raises(UserError, match="parameter weight is stored as f32-to-bf16"):
        load(toy_copy)


def test_damaged_shards(toy_copy):
    shard = toy_copy / "params_shard_1.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"has {len(data) - 1} bytes instead of {len(data)}"):
        load(toy_copy)
    # The index itself may promise more than the file holds.
    shard.write_bytes(data)
    change_cache(toy_copy, lambda cache: cache["records"][1]["records"][0].update(byteOffset=8))
    with pytest.raises(UserError, match="params_shard_1.bin ends early"):
        load(toy_copy)
    shard.unlink()
    with pytest.raises(UserError, match="params_shard_1.bin is missing"):
        load(toy_copy)
