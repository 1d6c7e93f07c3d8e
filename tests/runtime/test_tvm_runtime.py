import os
import subprocess
import sys

import pytest

from runtime.tvm_runtime import usable_cores


def run_python(code: str, **env: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TVM_")} | env
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout


def test_engine_loads_the_runtime_without_compiler_and_torch():
    code = (
        "import sys; from runtime import engine, tvm_runtime; ffi = tvm_runtime.load()\n"
        "loaded = {name.partition('.')[0] for name, module in sys.modules.items() if module is not None}\n"
        "print(sorted(loaded & {'tvm', 'torch', 'transformers', 'passes', 'tir_kernels', 'relax_models', 'compile'}))\n"
        "print('libtvm_compiler' in open('/proc/self/maps').read())\n"
        "print(ffi.get_global_func('vm.builtin.kv_state_clear') is not None)"
    )
    assert run_python(code).split() == ["[]", "False", "True"]


def test_torch_can_be_imported_afterwards():
    code = "from runtime import tvm_runtime; tvm_runtime.load(); import torch; print(torch.ones(2).sum().item())"
    assert run_python(code).split() == ["2.0"]


def test_threads_are_all_usable_cores_unless_the_user_says_otherwise():
    code = (
        "import os; from runtime import tvm_runtime; ffi = tvm_runtime.load()\n"
        "print(ffi.get_global_func('runtime.NumThreads')(), os.environ['TVM_BIND_THREADS'])"
    )
    assert run_python(code).split() == [str(usable_cores()), "0"]
    assert run_python(code, TVM_NUM_THREADS="1", TVM_BIND_THREADS="1").split() == ["1", "1"]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_usable_cores_respects_the_quota(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == cores
