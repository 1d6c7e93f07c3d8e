import stat

import pytest

from passes.packaging import cuda_toolkit
from passes.packaging.cuda_toolkit import find_cuda_tool, find_cuda_toolkit, spilling_kernels, with_registers
from runtime.errors import UserError


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No CUDA toolkit on this machine."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda_toolkit.glob, "glob", lambda _pattern: [])
    monkeypatch.setattr(cuda_toolkit, "SYSTEM_ROOT", str(tmp_path / "none"))
    return tmp_path


def install(root, archs, tool=""):
    path = root / "bin" / (tool or "nvcc")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + "".join(f"echo sm_{arch}\n" for arch in archs))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_first_that_knows_the_architectures(nowhere, monkeypatch):
    old = install(nowhere / "old", (75, 80, 90))
    new = install(nowhere / "new", ("80", "90", "90a", "120"))
    monkeypatch.setenv("CUDA_PATH", str(nowhere / "old"))
    monkeypatch.setenv("CUDA_HOME", str(nowhere / "new"))
    assert find_cuda_toolkit((80, 90)).nvcc == old
    toolkit = find_cuda_toolkit((80, 120))
    assert toolkit.nvcc == new and toolkit.archs == {80, 90, 120}


def test_a_toolkit_from_wheels(nowhere, monkeypatch):
    nvcc = install(nowhere / "site-packages/nvidia/cu13", (80,))
    cuobjdump = install(nowhere / "site-packages/nvidia/cu13", (), "cuobjdump")
    monkeypatch.setattr(cuda_toolkit, "_wheel_roots", lambda: [str(nowhere / "site-packages/nvidia/cu13")])
    assert find_cuda_toolkit((80,)).nvcc == nvcc
    assert find_cuda_tool("cuobjdump") == cuobjdump


def test_what_is_missing_is_named_with_its_remedy(nowhere, monkeypatch):
    monkeypatch.setattr(cuda_toolkit, "_wheel_roots", list)
    with pytest.raises(UserError, match=r"nvcc: `pip install 'entropy-mlc\[cuda\]'"):
        find_cuda_toolkit((80,))
    with pytest.raises(UserError, match=r"cuobjdump was not found: `pip install"):
        find_cuda_tool("cuobjdump")
    nvcc = install(nowhere / "old", (75, 80))
    monkeypatch.setenv("CUDA_PATH", str(nowhere / "old"))
    with pytest.raises(UserError, match="90,120.*--cuda-arch.*pip install") as caught:
        find_cuda_toolkit((80, 90, 120))
    assert str(nvcc) in str(caught.value)


def test_kernels_that_ptxas_says_it_spills():
    said = """ptxas info    : Compiling entry function 'first_kernel' for 'sm_80'
ptxas info    : Function properties for first_kernel
    16 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 16 bytes cumulative stack size
ptxas info    : Function properties for second_kernel
    200 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for third_kernel
    0 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
"""
    assert spilling_kernels(said) == {"first_kernel", "third_kernel"}


def test_only_the_named_kernels_get_more_registers():
    declared = 'extern "C" __global__ void __launch_bounds__(256) {}(int* __restrict__ a);\n'
    source = "".join(declared.format(name) for name in ("one_kernel", "one_kernel_1", "two_kernel"))
    changed = with_registers(source, {"one_kernel", "two_kernel"}).splitlines()
    assert ["(256, 1)" in line for line in changed] == [True, False, True]
    assert "\n".join(changed).replace("(256, 1)", "(256)") == source.rstrip()
