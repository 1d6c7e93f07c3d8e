"""What libraries for Macs and browsers are linked from, on a machine that cannot link them."""

import re
import subprocess
import sys
import tarfile

import pytest
from small_module import build_small_module

from passes.packaging import library_packaging
from passes.target import parse_target

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
    assert set(re.findall(r"[\w/]+\.(?:o|cc)\b", script)) == {"lib0.o", "devc.o", "native/kv_cache.cc"}
    assert subprocess.run(["sh", "-n", str(folder / "link.sh")]).returncode == 0
    assert f"tar xf {folder.name}.tar" in packaging.next_step and f"sh {folder.name}/link.sh" in packaging.next_step


def test_the_kv_cache_compiles_from_what_is_packed(unpacked):
    """With nothing but the folder; for this machine, since no compiler of the target's is here."""
    _, folder, _ = unpacked
    command = ["g++", "-std=c++17", "-fsyntax-only", "-isystem", "include", "native/kv_cache.cc"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
