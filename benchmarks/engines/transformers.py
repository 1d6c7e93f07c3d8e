"""Hugging Face transformers in bfloat16, attention by PyTorch's scaled_dot_product_attention."""

from collections.abc import Callable, Sequence

import torch
import transformers

from benchmarks.engines.base import EngineSettings
from benchmarks.engines.hugging_face import rope_overrides


class Transformers:
    """``settings.model`` is a Hugging Face folder; no options."""

    def __init__(self, settings: EngineSettings) -> None:
        torch.set_num_threads(settings.threads)
        self._yarn = settings.yarn
        config = transformers.AutoConfig.from_pretrained(settings.model)
        for name, value in rope_overrides(settings).items():
            setattr(config, name, value)
        model = transformers.AutoModelForCausalLM.from_pretrained(settings.model, config=config, dtype=torch.bfloat16)
        self._model = model.eval()

    @property
    def description(self) -> str:
        yarn = f", YaRN x{self._yarn.factor:g}" if self._yarn else ""
        return f"transformers {transformers.__version__}, torch {torch.__version__}, bfloat16, SDPA{yarn}"

    @torch.inference_mode()
    def generate(self, ids: Sequence[int], count: int, on_token: Callable[[int], None]) -> None:
        cache = transformers.DynamicCache(config=self._model.config)
        tokens = torch.tensor([ids])
        for _ in range(count):
            output = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens = output.logits[:, -1].argmax(-1, keepdim=True)
            on_token(int(tokens))
