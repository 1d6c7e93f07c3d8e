"""Llama 2, 3 and 3.1 to 3.3, SmolLM2, and Mistral with full attention: the plain decoder.

Source: modeling_llama.py and modeling_mistral.py of Hugging Face transformers. What differs between them is in the
config (RoPE scaling, head_dim, tied embeddings); sliding windows are met by a context not longer than the window.
"""

from relax_models.causal_lm import CausalLM


class LlamaForCausalLM(CausalLM):
    """Attention has biases only if the config says so (attention_bias, on q, k, v and o)."""
