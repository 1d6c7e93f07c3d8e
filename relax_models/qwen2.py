"""Qwen2 and Qwen2.5: the plain decoder with biases on q, k and v, none on o.

Source: modeling_qwen2.py of Hugging Face transformers.
"""

from relax_models.causal_lm import CausalLM


class Qwen2ForCausalLM(CausalLM):
    """The config of the family has qkv_bias True and o_bias False."""
