"""The blocks of a Llama-style decoder: pre-norm attention with RoPE and grouped heads, and a SiLU-gated MLP.

Parameters have mlc_llm's names: q, k and v are one matrix, gate and up are one matrix (relax_models/weight_names.py).
"""

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from relax_models.config import ModelConfig


class Attention(nn.Module):
    """Causal self-attention through the KV cache, which rotates q and k by their positions."""

    def __init__(self, config: ModelConfig) -> None:
        self.num_attention_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, q_size + 2 * kv_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.o_bias)

    def forward(self, x: Tensor, paged_kv_cache: PagedKVCache, layer_id: int) -> Tensor:
        """x [b, n, hidden] -> [b, n, hidden]."""
        b, n, _ = x.shape
        heads = self.num_attention_heads + 2 * self.num_key_value_heads
        qkv = self.prepare(op.reshape(self.qkv_proj(x), (b, n, heads, self.head_dim)))
        output = paged_kv_cache.attention_with_fused_qkv(
            layer_id, qkv, self.num_attention_heads, sm_scale=self.head_dim**-0.5
        )
        return self.o_proj(op.reshape(output, (b, n, self.num_attention_heads * self.head_dim)))

    def prepare(self, qkv: Tensor) -> Tensor:
        """What a family does to the heads before RoPE; [b, n, q heads + k heads + v heads, head_dim], same out."""
        return qkv


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(op.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind an RMSNorm and added to its input."""

    def __init__(self, config: ModelConfig, attention: type[Attention]) -> None:
        self.input_layernorm = rms_norm(config.hidden_size, config)
        self.self_attn = attention(config)
        self.post_attention_layernorm = rms_norm(config.hidden_size, config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, paged_kv_cache: PagedKVCache, layer_id: int) -> Tensor:
        x = self.self_attn(self.input_layernorm(x), paged_kv_cache, layer_id) + x
        return self.mlp(self.post_attention_layernorm(x)) + x


class Decoder(nn.Module):
    """The embedding table, the layers and the final norm."""

    def __init__(self, config: ModelConfig, attention: type[Attention]) -> None:
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config, attention) for _ in range(config.num_hidden_layers)])
        self.norm = rms_norm(config.hidden_size, config)

    def forward(self, x: Tensor, paged_kv_cache: PagedKVCache) -> Tensor:
        """Embeddings [b, n, hidden] -> output of the last layer, before the final norm."""
        for layer_id, layer in enumerate(self.layers):
            x = layer(x, paged_kv_cache, layer_id)
        return x


def rms_norm(size: int, config: ModelConfig) -> nn.RMSNorm:
    """RMSNorm over the last axis, with a weight and no bias."""
    return nn.RMSNorm(size, axes=-1, epsilon=config.rms_norm_eps, bias=False)
