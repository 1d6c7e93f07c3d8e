"""The rows of the comparison: each engine with the weights and settings in which it is strongest."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Variant:
    """``quant_type`` None takes the GGUF file as shipped, else llama.cpp's quantizer gives every matrix that type.
    ``phases`` are those in which the variant can be the engine's best."""

    engine: str
    name: str
    quant_type: str | None = None
    kv_dtype: str | None = None
    phases: tuple[str, ...] = ("prefill", "decode")
    model_dir: Path | None = None

    @property
    def label(self) -> str:
        return f"{self.engine} {self.name}"


# llama.cpp repacks Q4_0 for the CPU's widest dot products: its fastest type. A quantized KV cache makes it slower.
# OpenVINO multiplies 4- and 8-bit weights by activations that it quantizes to 8 bits as it goes. Its GGUF reader
# rejects Q5_0, so Qwen2.5-Coder as shipped is a gap.
PEERS = (
    Variant("llama.cpp", "as shipped"),
    Variant("llama.cpp", "Q4_0", "Q4_0"),
    Variant("openvino", "as shipped"),
    Variant("openvino", "Q4_0", "Q4_0"),
    Variant("openvino", "Q8_0", "Q8_0"),
    Variant("openvino", "Q4_0, bf16 KV", "Q4_0", "bf16", ("decode",)),
)


def variants(engines: list[str], model_dirs: list[Path]) -> list[Variant]:
    """The rows for these engines; one of ours for each model folder, named by its quantization."""
    ours = [
        Variant("ours", folder.name.removesuffix("-MLC").rsplit("-", 1)[-1], model_dir=folder) for folder in model_dirs
    ]
    return [variant for variant in (*ours, *PEERS) if variant.engine in engines]
