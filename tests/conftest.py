"""Real models for the tests. `make test` fetches SmolLM2 first; the larger model is optional."""

from pathlib import Path

import pytest

_MODELS = Path(__file__).parents[1] / "models"


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
