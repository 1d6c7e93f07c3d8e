"""From a config to its model."""

import tvm
from tvm.relax.frontend import nn

from relax_models.causal_lm import CausalLM
from relax_models.config import ModelConfig
from relax_models.llama import LlamaForCausalLM
from relax_models.pangu_embedded import PanguEmbeddedForCausalLM
from relax_models.qwen2 import Qwen2ForCausalLM
from relax_models.qwen3 import Qwen3ForCausalLM

MODELS: dict[str, type[CausalLM]] = {
    "llama": LlamaForCausalLM,
    "mistral": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "pangu_embedded": PanguEmbeddedForCausalLM,
}


def export_model(config: ModelConfig, dtype: str) -> tuple[tvm.IRModule, list[tuple[str, nn.Parameter]]]:
    """The MLC-style Relax module of a model, and its parameters in the order of the packed tuple.

    `dtype`, "float32", "float16" or "bfloat16", is that of parameters, activations and cache; logits are float32.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; it must be float32, float16 or bfloat16")
    model = MODELS[config.model_type](config)
    model.to(dtype)
    mod, parameters = model.export_tvm(spec=model.get_default_spec())
    return mod, parameters
