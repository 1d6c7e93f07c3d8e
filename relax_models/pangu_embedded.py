"""openPangu-Embedded 1B and 7B V1.1 (PanguEmbeddedForCausalLM): the plain decoder with biases on q, k, v and o.

Source: modular_openpangu_dense.py and config.json in the published model folder of openPangu-Embedded-7B-V1.1 (Huawei;
read in github.com/wujing215/OpenPangu7B-on-NVIDIA), where PanguEmbeddedModel is transformers' LlamaModel with
`bias=config.bias` on the four attention projections and no bias in the MLP. llama.cpp's src/models/pangu-embedded.cpp
computes the same. Checked against the files: model.safetensors.index.json of the 7B names these tensors (and a
rotary_emb.inv_freq a layer, which is recomputed), and its total_size is their size; the GGUF of the 1B V1.1 has the 340
tensors of 26 such layers with tied embeddings.
"""

from relax_models.causal_lm import CausalLM


class PanguEmbeddedForCausalLM(CausalLM):
    """The config of the family has qkv_bias and o_bias True."""
