"""Independent implementations of the families with random weights: Hugging Face's, and openPangu in plain torch.

Every parameter is drawn at random, biases and norms too, so that no mistake in one of them can hide.
"""

import math

import numpy as np
import torch
import transformers
from torch import nn

from relax_models.config import ModelConfig

_HF_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def tiny(model_type: str, **facts) -> ModelConfig:
    """A small config of a family: 4 query heads over 2 key/value heads of 64 dims, 2 layers, untied, 97 tokens."""
    defaults = {
        "hidden_size": 256,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 97,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "qkv_bias": model_type in ("qwen2", "pangu_embedded"),
        "o_bias": model_type == "pangu_embedded",
    }
    return ModelConfig(model_type=model_type, **(defaults | facts))


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

#: name -> config; between them GQA, MHA, MQA, head_dim other than hidden_size / heads, odd numbers of layers, tied and
#: untied, vocabularies that no power of two divides, every RoPE scaling.
TINY_CONFIGS: dict[str, ModelConfig] = {
    "llama": tiny("llama"),
    "llama-mha-tied": tiny("llama", num_key_value_heads=4, tie_word_embeddings=True, num_hidden_layers=3),
    "llama-3.1-rope": tiny("llama", rope_scaling=_LLAMA3, rope_theta=500000.0, vocab_size=128),
    "llama-linear-rope": tiny("llama", rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "llama-biases": tiny("llama", qkv_bias=True, o_bias=True),
    "mistral-wide-heads": tiny("mistral", head_dim=128, num_key_value_heads=1),
    "qwen2-tied": tiny(
        "qwen2", tie_word_embeddings=True, hidden_size=192, num_attention_heads=3, num_key_value_heads=1
    ),
    "qwen2-yarn": tiny("qwen2", rope_scaling=_YARN, num_hidden_layers=3, vocab_size=131),
    "qwen3-tied": tiny("qwen3", head_dim=96, tie_word_embeddings=True, rms_norm_eps=1e-6),
    "qwen3-yarn": tiny("qwen3", rope_scaling=_YARN, num_hidden_layers=1, head_dim=80),
    "pangu": tiny("pangu_embedded", rope_theta=4000000.0, num_hidden_layers=3),
    "pangu-tied": tiny("pangu_embedded", tie_word_embeddings=True, rope_theta=16000000.0),
}


def reference_model(config: ModelConfig, seed: int) -> nn.Module:
    """The reference of a config's family, float32, with random weights."""
    if config.model_type != "pangu_embedded":
        return hf_model(config, seed)
    model = PanguReference(config)
    _randomize(model, seed)
    return model


def hf_model(config: ModelConfig, seed: int) -> nn.Module:
    """Hugging Face's model of a config, float32, eager attention, with random weights. Not for pangu_embedded."""
    config_class, model_class = _HF_CLASSES[config.model_type]
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "vocab_size", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"),
    )
    extra = {
        "llama": {"attention_bias": config.qkv_bias},
        "mistral": {"sliding_window": config.sliding_window},
        "qwen2": {},
        "qwen3": {"attention_bias": config.qkv_bias},
    }[config.model_type]
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"} | (config.rope_scaling or {})
    hf_config = config_class(
        **{name: getattr(config, name) for name in names}, **extra, rope_parameters=rope, attn_implementation="eager"
    )
    model = model_class(hf_config).eval()
    _randomize(model, seed)
    return model


def named_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Float32 weights by Hugging Face names; a tied output projection is left out, as in a safetensors file."""
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def reference_logits(model: nn.Module, ids: list[int]) -> np.ndarray:
    """Logits of every position of one sequence, float32 [len(ids), vocab]."""
    with torch.no_grad():
        output = model(torch.tensor([ids]))
    return (output if isinstance(output, torch.Tensor) else output.logits)[0].numpy()


def _randomize(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * values)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * values)
            else:
                # Rows of unit length keep activations, and with them differences in logits, of order one.
                parameter.copy_(values / math.sqrt(parameter.shape[1]))


class PanguReference(nn.Module):
    """openPangu-Embedded after modular_openpangu_dense.py and llama.cpp's pangu-embedded.cpp; names as published.

    Layer: x += o(attention(rope(q), rope(k), v)) of RMSNorm(x), with biases on q, k, v and o; then
    x += down(silu(gate) * up) of RMSNorm(x). forward(ids [1, n]) -> logits [1, n, vocab].
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList([_pangu_layer(config) for _ in range(config.num_hidden_layers)])
        self.model.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = x + self._attention(layer.self_attn, layer.input_layernorm(x))
            y = layer.post_attention_layernorm(x)
            x = x + layer.mlp.down_proj(nn.functional.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
        output = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return self.model.norm(x) @ output.T

    def _attention(self, attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
        d, (_, n, _) = self.config.head_dim, x.shape
        q, k, v = (
            projection(x).view(n, -1, d).transpose(0, 1)  # [heads, n, d]
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        k, v = (t.repeat_interleave(group, dim=0) for t in (self._rope(k), v))
        scores = self._rope(q) @ k.transpose(1, 2) / math.sqrt(d)
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        mixed = scores.softmax(-1) @ v
        return attention.o_proj(mixed.transpose(0, 1).reshape(1, n, -1))

    def _rope(self, x: torch.Tensor) -> torch.Tensor:
        """Turns dims (i, i + d/2) as a complex number by position * theta^(-2i/d)."""
        _, n, d = x.shape
        frequencies = self.config.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        angles = torch.outer(torch.arange(n, dtype=torch.float64), frequencies)
        turned = torch.complex(x[..., : d // 2].double(), x[..., d // 2 :].double()) * torch.exp(1j * angles)
        return torch.cat([turned.real, turned.imag], dim=-1).float()


def _pangu_layer(config: ModelConfig) -> nn.Module:
    hidden, q_size = config.hidden_size, config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    layer = nn.Module()
    layer.input_layernorm = nn.RMSNorm(hidden, eps=config.rms_norm_eps)
    layer.post_attention_layernorm = nn.RMSNorm(hidden, eps=config.rms_norm_eps)
    layer.self_attn = nn.Module()
    layer.self_attn.q_proj = nn.Linear(hidden, q_size)
    layer.self_attn.k_proj = nn.Linear(hidden, kv_size)
    layer.self_attn.v_proj = nn.Linear(hidden, kv_size)
    layer.self_attn.o_proj = nn.Linear(q_size, hidden)
    layer.mlp = nn.Module()
    layer.mlp.gate_proj = nn.Linear(hidden, config.intermediate_size, bias=False)
    layer.mlp.up_proj = nn.Linear(hidden, config.intermediate_size, bias=False)
    layer.mlp.down_proj = nn.Linear(config.intermediate_size, hidden, bias=False)
    return layer
