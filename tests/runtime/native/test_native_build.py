"""Compiling and linking the cache: clean of warnings, self-contained, also for another CPU."""

import shutil
import subprocess

import pytest
import tvm
import tvm_ffi.libinfo
from cache_library import build_executable

from runtime.errors import UserError
from runtime.native import toolchain
from runtime.native.build import SOURCE_DIR, build_kv_cache_object, cross_compiler
from runtime.native.toolchain import compiler_command

AARCH64 = "aarch64-linux-gnu"


def dynamic_section(path):
    return subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout


def exported_symbols(path):
    table = subprocess.run(["readelf", "--dyn-syms", "--wide", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines() if "GLOBAL" in line or "WEAK" in line or "UNIQUE" in line]
    return {row[7] for row in rows if row[6] != "UND"}


def test_sources_compile_without_a_warning():
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    include = f"-isystem{tvm_ffi.libinfo.find_include_path()}"
    done = subprocess.run([*compiler_command(None, None), *flags, include, str(SOURCE_DIR / "kv_cache.cc")])
    assert done.returncode == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_library_stands_alone(library_paths, dtype):
    path = library_paths[dtype]
    symbols = exported_symbols(path)
    assert {"__tvm_ffi_kv_cache_create", "__tvm_ffi_kv_cache_step", "__tvm_ffi_kv_cache_layer"} <= symbols
    assert all(symbol.startswith(("__tvm_ffi_", "__TVM")) for symbol in symbols)
    dynamic = dynamic_section(path)
    assert "[libtvm_ffi.so]" in dynamic and "NODELETE" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_probe_finds_the_layout_of_this_runtime(tmp_path):
    source = tmp_path / "probe.cc"
    source.write_text(
        '#include "abi_probe.h"\n'
        "tvm::ffi::Shape Probe() {\n"
        "  entropy_mlc::KVAbi abi = entropy_mlc::ProbeKVAbi();\n"
        "  return tvm::ffi::Shape({abi.checkpoint, abi.shared_kv});\n"
        "}\n"
        "TVM_FFI_DLL_EXPORT_TYPED_FUNC(probe, Probe);\n"
    )
    ffi_lib = tvm_ffi.libinfo.find_libtvm_ffi()
    flags = ["-std=c++17", "-shared", "-fPIC", f"-I{SOURCE_DIR}", f"-isystem{tvm_ffi.libinfo.find_include_path()}"]
    library = str(tmp_path / "probe.so")
    subprocess.run([*compiler_command(None, None), *flags, str(source), "-o", library, ffi_lib], check=True)
    assert tvm.__version__.startswith("0.27.0"), "another TVM: look up its layout and adapt this test"
    assert list(tvm_ffi.load_module(library)["probe"]()) == [1, 1]


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs apt install g++-aarch64-linux-gnu")
def test_cross_compiled_library_links(tmp_path):
    target = tvm.target.Target({"kind": "llvm", "mtriple": AARCH64, "mattr": ["+neon"]})
    obj = build_kv_cache_object(tmp_path / "kv_cache.o", target_triple=AARCH64)
    path = tmp_path / "lib.so"
    build_executable("bfloat16", target).export_library(str(path), fcompile=cross_compiler(AARCH64), addons=[str(obj)])
    header = subprocess.run(["readelf", "-h", path], capture_output=True, text=True, check=True).stdout
    assert "AArch64" in header and "DYN" in header
    assert {"__tvm_ffi_kv_cache_create", "__tvm_ffi_append_kernel"} <= exported_symbols(path)
    assert "[libtvm_ffi.so]" in dynamic_section(path) and "NODELETE" in dynamic_section(path)


def test_link_function_for_this_machine(cache_object, tmp_path):
    path = tmp_path / "lib.so"
    executable = build_executable("float32", tvm.target.Target("llvm"))
    executable.export_library(str(path), fcompile=cross_compiler(), addons=[str(cache_object)])
    assert "[libtvm_ffi.so]" in dynamic_section(path) and "RUNPATH" not in dynamic_section(path)


@pytest.mark.parametrize(
    "compiler, triple, message",
    [
        ("no-such-compiler", None, "'no-such-compiler' does not exist"),
        (None, None, "apt install g\\+\\+`"),
        (None, "aarch64-unknown-linux-gnu", "apt install g\\+\\+-aarch64-linux-gnu"),
        (None, "riscv64-linux-gnu", "no C\\+\\+ compiler is known for the target 'riscv64-linux-gnu'"),
    ],
)
def test_missing_compiler_names_the_remedy(tmp_path, monkeypatch, compiler, triple, message):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    with pytest.raises(UserError, match=message):
        build_kv_cache_object(tmp_path / "kv_cache.o", compiler, triple)
    assert not list(tmp_path.iterdir())
