"""Real models for the tests. `make test` fetches SmolLM2 first; the larger model is optional."""

import os
from pathlib import Path

# Threads of torch's and of TVM's pool spin while they wait for each other: up to 20 times the work of a small model.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")

import native_object
import pytest

from runtime.errors import UserError

native_object.install()
_MODELS = Path(__file__).parents[1] / "models"


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="run what is for CUDA on this machine's GPU, not emulated")


def pytest_configure(config):
    if config.getoption("gpu"):
        from gpu.real_cuda import replace_emulator  # imports the compiler

        try:
            replace_emulator()
        except UserError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    path = _MODELS / "SmolLM2-135M-Instruct.gguf"
    assert path.is_file(), f"{path} is missing: run `make test`, or python -m relax_models.fetch smollm2-135m"
    return path


@pytest.fixture(scope="session")
def qwen_coder_gguf() -> Path:
    path = _MODELS / "Qwen2.5-Coder-0.5B-Instruct.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is missing (491 MB): python -m relax_models.fetch qwen2.5-coder-0.5b gets it")
    return path


@pytest.fixture(scope="session")
def smollm2_hf(smollm2_gguf):
    """The same model in Hugging Face transformers, float32."""
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # What from_pretrained(gguf_file=...) does, without its need for accelerate.
    config = transformers.LlamaConfig(**load_gguf_checkpoint(smollm2_gguf)["config"])
    model = transformers.LlamaForCausalLM(config).float().eval()
    tensors = load_gguf_checkpoint(smollm2_gguf, return_tensors=True, model_to_load=model)["tensors"]
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"])  # tied to the embedding
    return model
