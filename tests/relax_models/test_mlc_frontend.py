"""--frontend mlc against the interface of mlc_llm.model (mlc-llm itself cannot be installed here).

The stand-in has what mlc_llm/model/model.py and support/config.py promise: MODELS by model_type, a config class with
from_dict, a module with to, get_default_spec and export_tvm, an open vocab_size, Qwen's c_attn.
"""

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import tvm
from reference import tiny
from tvm import relax
from tvm.relax.frontend import nn

from passes.attention_spec import attention_spec
from passes.build_library import LibraryFacts, library_metadata
from passes.dispatch_kv_cache_creation import DispatchKVCacheCreation
from passes.explicit_attention import ExplicitAttention
from passes.gpu_kernels import gpu_kernels
from passes.target import parse_target
from relax_models.mlc_frontend import load_mlc_model
from relax_models.qwen2 import Qwen2ForCausalLM
from runtime.errors import UserError
from runtime.policy import make_policy
from tir_kernels.gpu.features import gpu_features
from tir_kernels.quantization import weight_storage

CONFIG = tiny("qwen2")


@dataclasses.dataclass
class StandInConfig:
    """As mlc_llm.support.config.ConfigBase: unknown keys go to kwargs."""

    vocab_size: int
    context_window_size: int = 256
    prefill_chunk_size: int = 128
    max_batch_size: int = 1
    kwargs: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, source: dict) -> "StandInConfig":
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in source.items() if key in known}
        return cls(**fields, kwargs={key: value for key, value in source.items() if key not in known})


class StandInModel(Qwen2ForCausalLM):
    def __init__(self, config: StandInConfig) -> None:
        super().__init__(CONFIG)
        self.lm_head = nn.Linear(CONFIG.hidden_size, "vocab_size", bias=False, out_dtype="float32")

    def export_tvm(self, spec, allow_extern: bool):
        assert allow_extern
        mod, params = super().export_tvm(spec=spec)
        return mod, [(name.replace("qkv_proj", "c_attn"), param) for name, param in params], []


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": 97, "hidden_act": "silu"}))
    package, module = types.ModuleType("mlc_llm"), types.ModuleType("mlc_llm.model")
    definition = types.SimpleNamespace(name="qwen2", config=StandInConfig, model=StandInModel)
    module.MODELS = {"qwen2": definition}
    monkeypatch.setitem(sys.modules, "mlc_llm", package)
    monkeypatch.setitem(sys.modules, "mlc_llm.model", module)
    return tmp_path


def test_a_model_of_the_zoo_under_our_passes(folder):
    model = load_mlc_model(folder, "float16", "context_window_size=512;max_batch_size=4")
    assert (model.context_window_size, model.prefill_chunk_size, model.max_batch_size) == (512, 128, 4)
    assert model.vocab_size == 97 and model.name == folder.name
    spec = attention_spec(model.mod)
    assert (spec.num_hidden_layers, spec.num_attention_heads, spec.head_dim, spec.dtype) == (2, 4, 64, "float16")

    facts = LibraryFacts("qwen2", "q4f16_1", 97, 512, 128, 4, make_policy("dense", "full"))
    metadata = library_metadata(
        model.mod, model.param_names, facts, weight_storage("q4f16_1", "cuda"), parse_target("cuda")
    )
    shapes = {param["name"]: (param["dtype"], param["shape"]) for param in metadata["params"]}
    # As mlc_llm convert_weight --quantization q4f16_1 names and shapes them.
    assert shapes["lm_head.q_weight"] == ("uint32", [97, 32])
    assert shapes["lm_head.q_scale"] == ("float16", [97, 8])
    assert shapes["model.layers.0.self_attn.c_attn.q_weight"] == ("uint32", [512, 32])
    assert shapes["model.layers.0.self_attn.c_attn.bias"] == ("float16", [512])

    kernels, policy = gpu_kernels(gpu_features(parse_target("cuda"))), make_policy("dense", "full")
    passes = [ExplicitAttention(kernels, policy), DispatchKVCacheCreation(policy.cache_text())]
    mod = tvm.transform.Sequential(passes)(model.mod)
    text = mod.script(show_meta=False)
    assert "attention_with_fused_qkv" not in text and "create_paged_kv_cache_generic" not in text
    assert {"embed", "prefill", "decode", "batch_prefill", "batch_decode", "create_tir_paged_kv_cache"} <= {
        var.name_hint for var, func in mod.functions_items() if isinstance(func, relax.Function)
    }


def test_mistakes_are_one_sentence(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="rope_scaling"):
        load_mlc_model(folder, "float16", "rope_scaling=null")
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UserError, match="mamba.*qwen2"):
        load_mlc_model(folder, "float16")
    with pytest.raises(UserError, match="config.json"):
        load_mlc_model(tmp_path / "nowhere", "float16")
    monkeypatch.setitem(sys.modules, "mlc_llm.model", None)
    with pytest.raises(UserError, match="needs mlc-llm"):
        load_mlc_model(folder, "float16")
