"""Libraries for aarch64, run by qemu, against the same models compiled for this machine.

TVM's runtime for aarch64 comes from its wheels: `make aarch64` puts it into build/aarch64.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi.libinfo
from compiled_model import build, compile_model
from reference import hf_model, named_weights, tiny

from runtime.artifact import read_tensor_cache
from runtime.policy import make_policy

RUNTIME = Path(__file__).parents[2] / "build" / "aarch64"
SYSROOT = Path("/usr/aarch64-linux-gnu")
TARGET = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76"
HERE = "llvm -mcpu=x86-64"  # the same generic kernels; the tiers for newer CPUs round activations to 8 bits
CONFIG = tiny("llama", max_position_embeddings=1024)
POLICY = make_policy("entropy", "latent", "segment_size=64;threshold_len=128;base_budget=96;capacity=96;decode_gap=4")
TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 400).astype(np.int32)
STEPS = [(0, 256), (0, 128), (0, 6), *[(1, 1)] * 10]  # (decode, tokens): gated, the rest of the prompt, compressed
DTYPES = {"float32": (2, 32), "bfloat16": (4, 16), "int32": (0, 32)}

missing = [
    remedy
    for found, remedy in [
        (shutil.which("qemu-aarch64"), "apt install qemu-user"),
        (shutil.which("aarch64-linux-gnu-g++"), "apt install g++-aarch64-linux-gnu"),
        ((RUNTIME / "tvm/lib/libtvm_runtime.so").is_file(), "make aarch64"),
    ]
    if not found
]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {' and '.join(missing)}")


@pytest.fixture(scope="module")
def run_steps(tmp_path_factory):
    """The program run_steps.cc, as a command."""
    program = tmp_path_factory.mktemp("aarch64") / "run_steps"
    folders = [RUNTIME / "tvm_ffi/lib", RUNTIME / "tvm/lib"]
    libraries = [*(f"-L{folder}" for folder in folders), "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime"]
    source = Path(__file__).with_name("run_steps.cc")
    include = f"-isystem{tvm_ffi.libinfo.find_include_path()}"
    subprocess.run(["aarch64-linux-gnu-g++", "-std=c++17", include, source, "-o", program, *libraries], check=True)
    path = ":".join(map(str, folders))
    return ["qemu-aarch64", "-L", SYSROOT, "-E", f"LD_LIBRARY_PATH={path}", "-E", "TVM_NUM_THREADS=2", program]


def write_params(path: Path, shards: Path, names: list[str]) -> None:
    records = {r.name: (shard.dataPath, r) for shard in read_tensor_cache(shards).records for r in shard.records}
    with path.open("wb") as out:
        for name in names:
            file, record = records[name]
            out.write(np.array([*DTYPES[record.dtype], len(record.shape)], np.int32).tobytes())
            out.write(np.array(record.shape, np.int64).tobytes())
            out.write((shards / file).read_bytes()[record.byteOffset :][: record.nbytes])


def steps_and_tokens():
    first = 0
    for decode, count in STEPS:
        yield decode, TOKENS[first : first + count]
        first += count


@pytest.mark.parametrize("quantization, tolerance", [("q0f32", 1e-4), ("q4bf16_1", 0.03)])
def test_same_logits_as_on_this_machine(run_steps, tmp_path, quantization, tolerance):
    weights = named_weights(hf_model(CONFIG, seed=3))
    here = compile_model(CONFIG, weights, quantization, tmp_path, HERE, policy=POLICY)
    library = tmp_path / "aarch64.so"
    metadata = build(CONFIG, quantization, library, TARGET, policy=POLICY)
    write_params(tmp_path / "params", tmp_path / "weights", [param["name"] for param in metadata["params"]])
    steps = [np.array([decode, len(ids), *ids], np.int32) for decode, ids in steps_and_tokens()]
    (tmp_path / "steps").write_bytes(np.concatenate(steps).tobytes())
    files = [library, tmp_path / "params", tmp_path / "steps", tmp_path / "logits"]
    done = subprocess.run([*run_steps, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = np.fromfile(tmp_path / "logits", np.float32).reshape(len(STEPS), CONFIG.vocab_size)
    expected = np.stack(
        [here.decode(int(ids[0])) if decode else prefill_step(here, ids) for decode, ids in steps_and_tokens()]
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def prefill_step(model, ids) -> np.ndarray:
    """One step, where the runtime would cut the last segment in two."""
    sequence = model._sequence
    with sequence._forward(ids):
        logits = model.library.prefill(model.library.embed(ids, model.params), sequence._kv, model.params)
    return np.from_dlpack(logits).reshape(-1).copy()
