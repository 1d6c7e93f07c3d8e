"""The cache in processes of its own: TVM's runtime only, every order of destruction, a runtime that does not fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*args, **env):
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=HERE, env={**os.environ, **env})


@pytest.mark.parametrize("order", ["cache first", "module first", "tensors last", "at exit"])
def test_runtime_only_process_survives_any_order_of_destruction(library_paths, order):
    done = run("native_process.py", library_paths["bfloat16"], order)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_tvm_package_in_runtime_mode(library_paths):
    done = run("native_process.py", library_paths["float32"], "at exit", TVM_USE_RUNTIME_LIB="1")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


FOREIGN_RUNTIME = """
import sys
from runtime import tvm_runtime
tvm_ffi = tvm_runtime.load()
get = tvm_ffi.get_global_func
vm = tvm_ffi.load_module(sys.argv[1])["vm_load_executable"]()
vm["vm_initialization"](1, 0, 2, 1, 0, 2)

def create():
    try:
        vm["create_tir_paged_kv_cache"](*[tvm_ffi.Shape([size]) for size in (4, 512, 256, 16, 0)])
        print("created")
    except RuntimeError as error:
        print(error)

mla, popn, clear = "attention_kv_cache_append_mla_kv", "kv_state_popn", "kv_state_clear"
functions = {name: get("vm.builtin." + name) for name in (mla, popn, clear)}
tvm_ffi.registry.remove_global_func("vm.builtin." + mla)
create()
tvm_ffi.register_global_func("vm.builtin." + mla, functions[mla])
tvm_ffi.register_global_func("vm.builtin." + popn, lambda kv, seq, n: functions[clear](kv), override=True)
create()
tvm_ffi.register_global_func("vm.builtin." + popn, functions[popn], override=True)
create()
"""


def test_a_runtime_that_does_not_fit_is_refused(library_paths):
    done = run("-c", FOREIGN_RUNTIME, library_paths["float32"])
    assert done.returncode == 0, done.stderr
    missing, unknown, created = done.stdout.splitlines()
    assert "has no vm.builtin.attention_kv_cache_* functions" in missing
    assert "in an unknown way (vm.builtin.kv_state_popn calls slot 0, not 4)" in unknown
    assert created == "created"
