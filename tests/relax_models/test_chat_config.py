"""mlc-chat-config.json: MLC's fields, and where their values come from."""

import json

import pytest
from reference import tiny

from relax_models.chat_config import chat_config, read_generation_config, update_policy, write_chat_config
from relax_models.tokenizer_files import TokenizerFacts
from runtime.artifact import read_chat_config
from runtime.errors import UserError
from runtime.policy import make_policy

CONFIG = tiny("qwen2", sliding_window=256)
INFO = {"token_postproc_method": "byte_level", "prepend_space_in_encode": False, "strip_space_in_decode": False}
FACTS = TokenizerFacts(INFO, 90, {"eos_token": "</s>", "pad_token": "<pad>"}, {"</s>": 7, "<pad>": 8}, False, None)
# Fields of MLCChatConfig in mlc_llm/protocol/mlc_chat_config.py.
MLC_FIELDS = """version model_type quantization model_config vocab_size context_window_size sliding_window_size
prefill_chunk_size attention_sink_size tensor_parallel_shards pipeline_parallel_stages active_vocab_size temperature
presence_penalty frequency_penalty repetition_penalty top_p tokenizer_files tokenizer_info conv_template pad_token_id
bos_token_id eos_token_id model_task embedding_metadata""".split()


DENSE = make_policy("dense", "full")


def make(generation=None, facts=FACTS, policy=DENSE):
    return chat_config(CONFIG, "q4bf16_1", "q4_n32g32", facts, generation or {}, policy)


def test_fields_and_defaults():
    content = make()
    assert set(content) == {*MLC_FIELDS, "weight_format", "policy"}
    assert content["weight_format"] == "q4_n32g32" and content["quantization"] == "q4bf16_1"
    assert content["model_type"] == "qwen2" and content["vocab_size"] == 97 and content["active_vocab_size"] == 90
    assert content["context_window_size"] == 256 and content["prefill_chunk_size"] == 256
    # Attention is over the whole context: the model's window bounds the context, and MLC gets no window.
    assert content["sliding_window_size"] == content["attention_sink_size"] == -1
    # What MLC's engines look up inside model_config.
    for name in ("context_window_size", "sliding_window_size", "prefill_chunk_size", "vocab_size", "max_batch_size"):
        assert isinstance(content["model_config"][name], int)
    assert content["model_config"]["sliding_window_size"] == -1
    assert [content[name] for name in ("temperature", "top_p", "repetition_penalty")] == [1.0, 1.0, 1.0]
    assert [content[name] for name in ("presence_penalty", "frequency_penalty")] == [0.0, 0.0]
    assert [content[f"{role}_token_id"] for role in ("pad", "bos", "eos")] == [8, None, 7]
    assert content["conv_template"]["stop_token_ids"] == [7]
    assert content["tokenizer_info"] == INFO


def test_a_cache_that_compresses_is_a_window_over_the_whole_context():
    policy = make_policy("critiprefill", "snapkv")
    content = make(policy=policy)
    assert content["policy"] == policy.to_dict()
    assert content["context_window_size"] == content["sliding_window_size"] == 256
    assert content["model_config"]["sliding_window_size"] == 256 and content["attention_sink_size"] == -1


def test_an_existing_folder_learns_the_policy_of_a_new_library(tmp_path):
    compressing = make_policy()
    update_policy(tmp_path / "none", compressing)
    update_policy(tmp_path, compressing)
    assert not list(tmp_path.iterdir())
    write_chat_config(tmp_path, make({"temperature": 0.7}))
    for policy in (compressing, DENSE):
        update_policy(tmp_path, policy)
        assert [path.name for path in tmp_path.iterdir()] == ["mlc-chat-config.json"]
        content = json.loads((tmp_path / "mlc-chat-config.json").read_text())
        assert content == json.loads(json.dumps(make({"temperature": 0.7}, policy=policy)))


def test_generation_config_comes_first():
    generation = {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05, "top_k": 20, "eos_token_id": [5, 6]}
    content = make(generation | {"presence_penalty": None, "bos_token_id": 3})
    assert [content[name] for name in ("temperature", "top_p", "repetition_penalty")] == [0.7, 0.8, 1.05]
    assert content["presence_penalty"] == 0.0 and "top_k" not in content
    assert content["eos_token_id"] == [5, 6] and content["bos_token_id"] == 3 and content["pad_token_id"] == 8
    assert content["conv_template"]["stop_token_ids"] == [5, 6, 7]  # </s> ends a text in this vocabulary


def test_the_runtime_reads_it(tmp_path):
    write_chat_config(tmp_path, make())
    found = read_chat_config(tmp_path)
    assert found.weight_format == "q4_n32g32" and found.stop_token_ids == {7} and found.vocab_size == 97


def test_generation_config_files(tmp_path):
    assert read_generation_config(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.5}))
    assert read_generation_config(tmp_path) == {"temperature": 0.5}
    for content in ("{", "[1]"):
        path.write_text(content)
        with pytest.raises(UserError, match="generation_config.json (is not valid JSON|does not hold a JSON object)"):
            read_generation_config(tmp_path)
