"""CUDA libraries as compile.py writes them. What needs nvcc is skipped without it."""

import numpy as np
import pytest
import tvm
from gpu import emulated_cuda
from small_module import build_small_module, expected
from tvm import relax

from passes.packaging import SharedLibrary, library_packaging
from passes.packaging.cuda_code import cuda_as_source, embed_device_code
from passes.packaging.cuda_toolkit import find_cuda_toolkit
from passes.packaging.fatbin import DeviceImage, images_of_library
from passes.target import parse_target
from runtime.errors import UserError


@pytest.fixture(scope="module")
def packaging():
    try:
        find_cuda_toolkit((80, 90))
    except UserError as error:
        pytest.skip(str(error))
    return library_packaging(parse_target("cuda", cuda_arch="80,90"), (80, 90))


def test_machine_code_for_each_architecture_and_no_source_text(packaging, tmp_path):
    target, library = parse_target("cuda", cuda_arch="80,90"), tmp_path / "small-cuda.so"
    packaging.export(packaging.build(lambda: build_small_module(target)), library)
    assert images_of_library(library) == {DeviceImage("elf", 80), DeviceImage("elf", 90), DeviceImage("ptx", 90)}
    assert b"__global__" not in library.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [library.name]


def test_a_library_with_source_text_only_is_an_error(packaging, tmp_path):
    with cuda_as_source():
        executable = build_small_module(parse_target("cuda", cuda_arch="80,90"))
    with pytest.raises(RuntimeError, match="no device code: elf of 80, elf of 90, ptx of 90"):
        packaging.export(executable, tmp_path / "small-cuda.so")
    assert list(tmp_path.iterdir()) == []


def test_source_that_does_not_compile_says_where(packaging):
    with pytest.raises(RuntimeError, match="kernels.cu.*undefined"):
        packaging.toolkit.fatbin('extern "C" __global__ void f() { missing(); }', (80,))


def test_kernels_are_launched_as_tvm_means_them_to_be(tmp_path):
    """The record beside the code, how to launch each kernel, is as TVM wrote it: the library runs on the emulator."""
    with cuda_as_source():
        executable = build_small_module(parse_target("cuda", cuda_arch="80"))
    embed_device_code(executable.mod, emulated_cuda.device_code)
    library = tmp_path / "small-cuda.so"
    SharedLibrary().export(executable, library)
    assert b"__global__" not in library.read_bytes()

    device = emulated_cuda.device()
    vm = relax.VirtualMachine(tvm.runtime.load_module(str(library)), device)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 64)).astype("float32"), rng.standard_normal((64, 96)).astype("float32")
    result = vm["main"](tvm.runtime.tensor(x, device), tvm.runtime.tensor(w, device)).numpy()
    np.testing.assert_allclose(result, expected(x, w), rtol=1e-4, atol=1e-7)
