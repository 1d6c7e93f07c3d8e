"""Libraries for a device: the toy model (toy_library.py) on CUDA emulated on the CPU, and devices that are absent."""

import subprocess
import sys

import numpy as np
import pytest
import tvm
from gpu import emulated_cuda
from toy_library import build_toy_library, toy_logits, toy_weights, write_toy_folder
from toy_tokenizer import write_tokenizer

from runtime.device import Device, target_kind
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.sampling import SamplingParams

WEIGHTS = toy_weights()


@pytest.fixture(scope="module")
def cuda_dist(tmp_path_factory):
    """A dist folder whose library is for CUDA."""
    dist = tmp_path_factory.mktemp("cuda")
    target = emulated_cuda.target()
    with target, emulated_cuda.compiling():
        build_toy_library(dist / "libs" / "Toy-q0f32-cuda.so", target)
    write_toy_folder(dist / "Toy-q0f32-MLC", WEIGHTS)
    write_tokenizer(dist / "Toy-q0f32-MLC")
    return dist


@pytest.fixture(scope="module")
def engine(cuda_dist):
    return Engine(cuda_dist / "Toy-q0f32-MLC")


def prefill(engine, token_ids):
    engine.clear_cache()
    return engine._sequence.prefill(token_ids)


def test_logits_are_the_models(engine):
    library = engine._library
    for ids in ([3], [7, 20, 299], list(range(20))):
        logits = prefill(engine, ids)
        assert logits.device == emulated_cuda.device()
        np.testing.assert_allclose(library.numpy(logits)[0, 0], toy_logits(WEIGHTS, ids), rtol=1e-5, atol=1e-5)


def test_answers_are_those_of_the_model(engine):
    prompt, expected = [5, 9, 2], []
    for _ in range(8):
        expected.append(int(toy_logits(WEIGHTS, prompt + expected).argmax()))
    outputs = engine.generate(prompt, SamplingParams(temperature=0, max_tokens=8))
    assert [output.token_id for output in outputs] == expected


def test_probabilities_penalties_and_bias(engine):
    library, ids, counts = engine._library, np.array([1, 40, 299], np.int32), np.array([1, 3, 2], np.int32)
    expected = toy_logits(WEIGHTS, [3])
    probs = np.exp((expected - expected.max()) / 0.7)
    np.testing.assert_allclose(
        library.numpy(library.softmax(prefill(engine, [3]), 0.7))[0, 0], probs / probs.sum(), 1e-4
    )
    logits = prefill(engine, [3])
    library.apply_logit_bias(logits, ids[:2], np.array([5.0, -2.5], np.float32))
    library.apply_penalty(logits, ids, counts, np.array([0.5, 0.25, 1.5], np.float32))
    expected[1], expected[40] = expected[1] + 5.0, expected[40] - 2.5
    reduced = expected[ids] - 0.5 - 0.25 * counts
    expected[ids] = np.where(reduced < 0, reduced * 1.5, reduced / 1.5)
    np.testing.assert_allclose(library.numpy(logits)[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_saved_cache_goes_on(engine, tmp_path):
    prefill(engine, [7, 20, 299, 4])
    engine.save_cache(tmp_path / "cache")
    engine.clear_cache()
    assert engine.load_cache(tmp_path / "cache") == 4
    logits = engine._sequence.decode(11)
    expected = toy_logits(WEIGHTS, [7, 20, 299, 4, 11])
    np.testing.assert_allclose(engine._library.numpy(logits)[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_weights_are_on_the_device(engine):
    for tensor, expected in zip(engine._sequence._params, WEIGHTS.values(), strict=True):
        assert tensor.device == emulated_cuda.device()
        np.testing.assert_array_equal(engine._library.numpy(tensor), expected)


def test_a_cache_that_the_device_has_no_memory_for(engine):
    with pytest.raises(
        UserError, match="^Cannot allocate 8192 MiB more for the KV cache .*; lower max_total_seq_length"
    ):
        engine._library.create_kv_state(1 << 28)


def test_operators_are_waited_for(engine):
    seen = []
    engine._library.instrument(lambda name, before: seen.append((name, before)))
    prefill(engine, [3])
    assert len(seen) % 2 == 0 and {name for name, _ in seen} & {"matmul", "NT_matmul", "take"}


@pytest.mark.parametrize(
    "target, kind",
    [
        (None, "llvm"),
        ("llvm -mcpu=znver5", "llvm"),
        (str(tvm.target.Target({"kind": "llvm"})), "llvm"),
        (str(emulated_cuda.target()), "cuda"),
        ({"kind": "metal"}, "metal"),
    ],
)
def test_kind_of_a_target(target, kind):
    assert target_kind(target) == kind


@pytest.mark.parametrize(
    "kind, message",
    [
        (
            "vulkan",
            "this library is for vulkan, and no Vulkan device was found: the TVM runtime that is installed has no ",
        ),
        ("hexagon", "this library is for hexagon, which this runtime does not drive"),
    ],
)
def test_devices_that_the_runtime_cannot_drive(kind, message):
    with pytest.raises(UserError, match=message):
        Device(kind)


def test_a_cuda_library_without_a_cuda_device(cuda_dist):
    # In a process without the emulator.
    code = (
        "import sys; from runtime.engine import Engine; from runtime.errors import UserError\n"
        "try: Engine(sys.argv[1])\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(cuda_dist / "Toy-q0f32-MLC")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("this machine has a CUDA device")
    assert done.stdout.startswith("this library is for cuda, and no CUDA device was found: libcuda.so.1: cannot open")
    assert "use a library for this machine's CPU (compile.py --target llvm)" in done.stdout
