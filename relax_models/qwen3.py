"""Qwen3: each q and each k head goes through an RMSNorm before RoPE; head_dim does not follow from hidden_size.

Source: modeling_qwen3.py of Hugging Face transformers.
"""

from tvm.relax.frontend.nn import Tensor, op

from relax_models.causal_lm import CausalLM
from relax_models.config import ModelConfig
from relax_models.decoder import Attention, rms_norm


class Qwen3Attention(Attention):
    """One norm weight [head_dim] for all q heads of a layer, one for all k heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.q_norm = rms_norm(config.head_dim, config)
        self.k_norm = rms_norm(config.head_dim, config)

    def prepare(self, qkv: Tensor) -> Tensor:
        k_start, v_start = self.num_attention_heads, self.num_attention_heads + self.num_key_value_heads
        q, k, v = op.split(qkv, [k_start, v_start], axis=2)
        return op.concat([self.q_norm(q), self.k_norm(k), v], dim=2)


class Qwen3ForCausalLM(CausalLM):
    attention = Qwen3Attention
