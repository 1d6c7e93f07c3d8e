"""The GGUF reader against the gguf package's own, and on files that are cut off or damaged."""

import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import quantized, write_gguf

from relax_models.gguf_file import GGUFFile
from runtime.errors import UserError

F32, F16, BF16 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 64)).astype(np.float32),
        "b": quantized(rng.standard_normal((5, 256)), gguf.GGMLQuantizationType.Q4_0),
        "vector": rng.standard_normal(7).astype(np.float32),
    }
    arrays = {"words": ["", "é", "日本"], "numbers": [1, -2, 3], "floats": [0.5, -1.5], "flags": [True, False]}
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(path, tensors, arrays=arrays, general__name="tiny é", flag=True, half=0.5)


def test_same_as_the_gguf_package(file):
    ours, theirs = GGUFFile(file), gguf.GGUFReader(file)
    assert ours.architecture == "llama"
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(ours.metadata) == names
    for name in names:
        assert ours.metadata[name] == theirs.fields[name].contents()
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.shape, found.type_id) == (tuple(tensor.shape[::-1]), tensor.tensor_type)
        assert (found.offset, found.nbytes) == (tensor.data_offset, tensor.n_bytes)
        np.testing.assert_array_equal(ours.raw_rows(tensor.name).reshape(-1), tensor.data.reshape(-1).view(np.uint8))


# The types that gguf dequantizes, found by trying: a block of zeros has a value in all of them.
def _dequantizable():
    for quantization in gguf.GGMLQuantizationType:
        block, size = gguf.GGML_QUANT_SIZES[quantization]
        try:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), quantization)
        except NotImplementedError:
            continue
        yield quantization


@pytest.mark.parametrize("quantization", [q for q in _dequantizable() if q not in (F32, F16)], ids=lambda q: q.name)
def test_every_quantization(tmp_path, quantization):
    block, size = gguf.GGML_QUANT_SIZES[quantization]
    rows, blocks = 6, 2
    data = np.random.default_rng(1).integers(0, 256, (rows, blocks * size), np.uint8)
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", {"w": (quantization, data)}))
    assert file.tensors["w"].shape == (rows, blocks * block)
    with np.errstate(all="ignore"):  # random scales overflow
        expected = gguf.quants.dequantize(data, quantization)
        found = file.dequantize("w", file.raw_rows("w")[2:5])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected[2:5])


@pytest.mark.parametrize(
    "quantization, bound", [(BF16, 2**-8), ("Q8_0", 0.01), ("Q5_1", 0.05), ("Q4_0", 0.12), ("Q4_1", 0.12)], ids=str
)
def test_quantized_values_are_near_the_original(tmp_path, quantization, bound):
    weight = np.random.default_rng(2).standard_normal((4, 512)).astype(np.float32)
    quantization = gguf.GGMLQuantizationType[quantization] if isinstance(quantization, str) else quantization
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", {"w": quantized(weight, quantization)}))
    error = np.linalg.norm(file.dequantize("w", file.raw_rows("w")) - weight) / np.linalg.norm(weight)
    assert error < bound


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_float_types(tmp_path, dtype):
    weight = np.random.default_rng(3).standard_normal((3, 5)).astype(dtype)
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", {"w": weight}))
    np.testing.assert_array_equal(file.dequantize("w", file.raw_rows("w")), weight.astype(np.float32))


def test_a_type_that_gguf_cannot_dequantize(tmp_path):
    data = np.zeros((2, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_1][1]), np.uint8)
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", {"w": (gguf.GGMLQuantizationType.Q8_1, data)}))
    with pytest.raises(UserError, match="m.gguf: tensor w is stored as Q8_1"):
        file.dequantize("w", file.raw_rows("w"))


def test_wrong_files(tmp_path):
    with pytest.raises(UserError, match="none.gguf does not exist"):
        GGUFFile(tmp_path / "none.gguf")
    with pytest.raises(UserError, match="does not exist or is not a file"):
        GGUFFile(tmp_path)
    path = tmp_path / "m.gguf"
    for content, message in (
        (b"PK\x03\x04 something", r"not a GGUF file: it starts with b'PK\\x03\\x04' instead of b'GGUF'"),
        (b"", r"it starts with b''"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is GGUF version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "is corrupt .the key general.architecture is missing"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            GGUFFile(path)
    with pytest.raises(UserError, match="is one part of 3; merge the parts"):
        GGUFFile(write_gguf(path, {}, split__count=3))


def test_unknown_tensor_type(file, tmp_path):
    content = file.read_bytes()
    description = struct.pack("<Q1sI2QI", 1, b"a", 2, 64, 3, F32)
    assert content.count(description) == 1
    path = tmp_path / "m.gguf"
    path.write_bytes(content.replace(description, struct.pack("<Q1sI2QI", 1, b"a", 2, 64, 3, 999)))
    with pytest.raises(UserError, match="tensor a has ggml type 999"):
        GGUFFile(path)


def test_cut_off_anywhere(file, tmp_path):
    content, path = file.read_bytes(), tmp_path / "m.gguf"
    end = max(tensor.offset + tensor.nbytes for tensor in GGUFFile(file).tensors.values())
    for size in (*range(4, end, 11), end - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="is truncated"):
            GGUFFile(path)


def test_a_cut_tensor_is_named_with_its_sizes(file, tmp_path):
    last = GGUFFile(file).tensors["vector"]
    path = tmp_path / "m.gguf"
    path.write_bytes(file.read_bytes()[: last.offset + 5])
    with pytest.raises(UserError) as error:
        GGUFFile(path)
    assert f"tensor vector of shape [7] ends at byte {last.offset + 28}, the file has {last.offset + 5} bytes" in str(
        error.value
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_headers_give_no_other_exception(file, tmp_path_factory, data):
    content = bytearray(file.read_bytes())
    header_end = GGUFFile(file).tensors["a"].offset
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, header_end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(content)
    try:
        damaged = GGUFFile(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        for name, tensor in damaged.tensors.items():
            assert damaged.raw_rows(name).size == tensor.nbytes
