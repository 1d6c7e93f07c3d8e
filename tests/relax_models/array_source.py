"""A WeightSource over arrays in memory."""

from pathlib import Path

import numpy as np

from relax_models.weight_names import hf_sources
from runtime.errors import UserError

_HIDDEN_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


class ArraySource:
    path = Path("arrays")

    def __init__(self, tensors, bits=32):
        self.tensors = tensors
        self.bits = bits if isinstance(bits, dict) else dict.fromkeys(tensors, bits)

    def names(self):
        return list(self.tensors)

    def shape(self, name):
        if name not in self.tensors:
            raise UserError(f"arrays has no tensor {name}")
        return self.tensors[name].shape

    def bits_per_weight(self, name):
        return self.bits[name]

    def load_rows(self, name, start, stop):
        return self.tensors[name][start:stop].astype(np.float32)

    def load(self, name):
        return self.load_rows(name, 0, self.shape(name)[0])

    def parameter(self, name, config):
        """The whole parameter `name`, float32, put together here."""
        return np.concatenate([self.load(part) for part in hf_sources(name, config)])


def random_source(config, seed=0):
    """Random tensors with the Hugging Face names and shapes of `config`."""
    rng = np.random.default_rng(seed)
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for i in range(config.num_hidden_layers):
        layer = {f"self_attn.{name}_proj.weight": (rows, hidden) for name, rows in (("q", q), ("k", kv), ("v", kv))}
        layer |= {"self_attn.o_proj.weight": (hidden, q), "mlp.down_proj.weight": (hidden, inner)}
        layer |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        layer |= dict.fromkeys(_HIDDEN_NORMS, (hidden,))
        if config.qkv_bias:
            layer |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return ArraySource({name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
