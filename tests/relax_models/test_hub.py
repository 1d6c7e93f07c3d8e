"""Names of models: paths, hub ids, and neither. The hub itself is replaced; there may be no network."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from relax_models.hub import local_model
from runtime.errors import UserError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    calls = []

    def snapshot_download(repository, allow_patterns):
        assert {"*.safetensors", "config.json", "tokenizer.json"} <= set(allow_patterns)
        calls.append((repository, None))
        return str(tmp_path)

    def hf_hub_download(repository, file):
        calls.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return calls


def test_a_path_stays_as_it_is(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "model").mkdir(parents=True)
    assert str(local_model("Qwen/model")) == "Qwen/model" and not hub


def test_hub_ids(hub, tmp_path):
    assert local_model("Qwen/Qwen2.5-0.5B-Instruct") == tmp_path
    assert local_model("org/model-GGUF/model-q8_0.gguf") == tmp_path / "model-q8_0.gguf"
    assert hub == [("Qwen/Qwen2.5-0.5B-Instruct", None), ("org/model-GGUF", "model-q8_0.gguf")]


@pytest.mark.parametrize("name", ["nothing", "./models/x.gguf", "/models/x", "~/a", "a/b/c", "a b/c", "", "a//b.gguf"])
def test_neither_a_path_nor_a_hub_id(hub, name):
    with pytest.raises(UserError, match="is neither a file, a folder nor a hub id"):
        local_model(name)
    assert not hub


def test_a_failed_download_is_one_line(monkeypatch):
    def fails(*_, **__):
        raise LocalEntryNotFoundError("An error happened.\nPlease check your connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(UserError) as error:
        local_model("org/model")
    assert str(error.value) == "org/model is no local path, and getting it from the hub failed: An error happened."
