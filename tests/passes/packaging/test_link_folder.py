"""What libraries for Macs and browsers are linked from, on a machine that cannot link them."""

import re
import subprocess
import sys
import tarfile

import pytest
from small_module import build_small_module

from passes.packaging import library_packaging
from passes.target import parse_target
from runtime.native.build import link_options

_KINDS = {"metal": (b"\xcf\xfa\xed\xfe", b"kernel void", "dylib"), "webgpu": (b"\0asm", b"@compute", "wasm")}


@pytest.fixture(scope="module", params=_KINDS)
def unpacked(request, tmp_path_factory):
    if request.param == "metal" and sys.platform == "darwin":
        pytest.skip("a Mac links the library")
    folder = tmp_path_factory.mktemp(request.param)
    target = parse_target(request.param)
    packaging = library_packaging(target)
    archive = folder / f"Small-1.5B-{request.param}{packaging.suffix}"
    packaging.export(packaging.build(lambda: build_small_module(target)), archive)
    assert [path.name for path in folder.iterdir()] == [archive.name]
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return request.param, folder / archive.stem, packaging


def test_objects_of_the_target_hold_the_kernels(unpacked):
    kind, folder, _ = unpacked
    magic, kernel, _ = _KINDS[kind]
    objects = {path.name: path.read_bytes() for path in folder.glob("*.o")}
    assert objects.keys() == {"lib0.o", "devc.o"}
    assert all(data.startswith(magic) for data in objects.values())
    assert kernel in objects["devc.o"]


def test_the_script_names_what_is_there(unpacked):
    kind, folder, packaging = unpacked
    script = (folder / "link.sh").read_text()
    assert f"../Small-1.5B-{kind}.{_KINDS[kind][2]}" in script
    sources = {"native/kv_cache.cc", "native/register.cc"} if kind == "webgpu" else {"native/kv_cache.cc"}
    assert set(re.findall(r"[\w/]+\.(?:o|cc)\b", script)) == {"lib0.o", "devc.o", *sources}
    assert all((folder / source).is_file() for source in sources)
    assert subprocess.run(["sh", "-n", str(folder / "link.sh")]).returncode == 0
    assert f"tar xf {folder.name}.tar" in packaging.next_step and f"sh {folder.name}/link.sh" in packaging.next_step


def test_the_kv_cache_compiles_from_what_is_packed(unpacked):
    """With nothing but the folder; for this machine, since no compiler of the target's is here."""
    _, folder, _ = unpacked
    command = ["g++", "-std=c++17", "-fsyntax-only", "-isystem", "include", "native/kv_cache.cc"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_browsers_vm_finds_the_kv_cache(unpacked, tmp_path):
    """The functions that a shared library exports are registered by name: here in a process of this machine."""
    kind, folder, _ = unpacked
    if kind != "webgpu":
        pytest.skip("a Mac's VM asks the library")
    library = tmp_path / "native.so"
    sources = [str(folder / "native" / name) for name in ("kv_cache.cc", "register.cc")]
    flags = ["-std=c++17", "-O0", "-fPIC", "-shared", "-isystem", str(folder / "include")]
    subprocess.run(["g++", *flags, *sources, "-o", str(library), *link_options()], check=True)
    program = (
        "import ctypes, sys, tvm_ffi; ctypes.CDLL(sys.argv[1]); library = tvm_ffi.system_lib();"
        "print(*(name for name in sys.argv[2:] if library.implements_function(name)))"
    )
    names = ["kv_cache_create", "kv_cache_step", "kv_cache_write_pages", "kv_cache_no_such"]
    command = [sys.executable, "-c", program, str(library), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == names[:3]
