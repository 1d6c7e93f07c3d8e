import json

import pytest
from toy_library import toy_metadata

from runtime import artifact
from runtime.artifact import (
    find_library,
    library_file,
    model_dir,
    parse_library_metadata,
    read_chat_config,
    read_tensor_cache,
)
from runtime.errors import UserError
from runtime.policy import make_policy


def test_library_is_found_where_the_compiler_puts_it(tmp_path, monkeypatch):
    folder, library = model_dir(tmp_path, "Tiny", "q0f32"), library_file(tmp_path, "Tiny", "q0f32")
    assert (folder.name, library.name) == ("Tiny-q0f32-MLC", "Tiny-q0f32-cpu.so")
    folder.mkdir()
    with pytest.raises(UserError, match="Tiny-q0f32-cpu.so.*compile.py"):
        find_library(folder)
    library.parent.mkdir()
    for_cuda = library_file(tmp_path, "Tiny", "q0f32", "cuda")
    for_cuda.touch()
    assert find_library(folder) == for_cuda
    library.touch()
    assert find_library(folder) == library
    monkeypatch.chdir(folder)
    assert find_library(artifact.Path(".")) == library


@pytest.mark.parametrize(
    ("eos", "template", "expected"),
    [
        (None, None, set()),
        (2, None, {2}),
        ([2, 3], {"stop_token_ids": [3, 4]}, {2, 3, 4}),
        (2, "chatml", {2}),
        (2, {"name": "chatml"}, {2}),
    ],
)
def test_stop_token_ids(eos, template, expected):
    config = artifact.ChatConfig(
        model_type="llama",
        quantization="q0f32",
        vocab_size=10,
        context_window_size=64,
        eos_token_id=eos,
        conv_template=template,
    )
    assert config.stop_token_ids == expected


def test_chat_config_errors(tmp_path):
    with pytest.raises(UserError, match="no model folder at .*nowhere"):
        read_chat_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no MLC model folder"):
        read_chat_config(tmp_path)
    path = tmp_path / "mlc-chat-config.json"
    for data in (b"{", b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="mlc-chat-config.json is not valid JSON"):
            read_chat_config(tmp_path)
    for text in ('{"model_type": "llama"}', "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match="does not follow MLC's schema"):
            read_chat_config(tmp_path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="tensor-cache.json does not exist: convert the weights"):
        read_tensor_cache(tmp_path)


def test_policy_of_a_library(tmp_path):
    metadata = toy_metadata()
    assert parse_library_metadata(json.dumps(metadata), tmp_path).policy == make_policy()
    del metadata["policy"]
    assert parse_library_metadata(json.dumps(metadata), tmp_path).policy is None


def test_library_metadata(tmp_path):
    good = toy_metadata()
    assert parse_library_metadata(json.dumps(good), tmp_path).params[0].name == "table"
    with pytest.raises(UserError, match="there is no policy setting sparsity"):
        parse_library_metadata(json.dumps(good | {"policy": {"sparsity": 1}}), tmp_path)
    del good["prefill_chunk_size"]
    with pytest.raises(UserError, match="prefill_chunk_size"):
        parse_library_metadata(json.dumps(good), tmp_path)
