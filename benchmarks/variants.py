"""The rows of the comparison: each engine with the weights and settings in which it is strongest."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.policy_argument import PolicyArgument
from runtime.artifact import find_library
from runtime.errors import UserError

# What dense attention is in a library compiled for another policy.
_DENSE_SETTINGS = "threshold_len=2000000000;decode=full"


@dataclass(frozen=True)
class Variant:
    """``weights``: "shipped", the GGUF file itself; "bf16 folder", a Hugging Face folder made of it; a quantization
    type of llama.cpp, whose quantizer gives it to every matrix; or the path of our model folder. ``identity`` changes
    with what is measured under the same label."""

    engine: str
    name: str
    weights: str = "shipped"
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    identity: str = ""

    @property
    def label(self) -> str:
        return f"{self.engine}{'-' if self.engine == 'ours' else ' '}{self.name}"

    @property
    def is_dense(self) -> bool:
        """Whether it is known that the whole cache is attended to at every step."""
        return self.engine != "ours" and not {"sparse", "evict"} & set(self.options)


# llama.cpp repacks Q4_0 for the CPU's widest dot products: its fastest type. A quantized KV cache makes it slower.
# OpenVINO multiplies 4- and 8-bit weights by activations that it quantizes to 8 bits as it goes; F16 weights become
# bfloat16. Its GGUF reader rejects Q5_0, so Qwen2.5-Coder as shipped is a gap.
PEERS = (
    Variant("llama.cpp", "as shipped"),
    Variant("llama.cpp", "Q4_0", "Q4_0"),
    Variant("openvino", "as shipped"),
    Variant("openvino", "Q4_0", "Q4_0"),
    Variant("openvino", "Q8_0", "Q8_0"),
    Variant("openvino", "bf16", "F16", {"kv": "bf16"}),
    Variant("openvino", "Q4_0 bf16-KV", "Q4_0", {"kv": "bf16"}),
    Variant("openvino", "Q4_0 XATTENTION", "Q4_0", {"sparse": "XATTENTION"}),
    Variant("openvino", "Q4_0 TRISHAPE", "Q4_0", {"sparse": "TRISHAPE", "chunk": 512}),
    Variant("openvino", "Q4_0 eviction", "Q4_0", {"evict": 2048}),
    Variant("vllm", "bf16", "bf16 folder"),
    Variant("transformers", "bf16", "bf16 folder"),
)


def our_variants(model_dirs: list[Path], policies: list[str], device: str) -> list[Variant]:
    """A row for each policy, ``NAME=LIBRARY[:k=v;k=v]``, and model folder; by default dense attention and whatever the
    library for ``device`` was compiled for. UserError if a library is missing."""
    arguments = [PolicyArgument.parse(text) for text in policies or [f"dense=:{_DENSE_SETTINGS}", "entropy="]]
    rows = []
    for folder in model_dirs:
        quantization = folder.name.removesuffix("-MLC").rsplit("-", 1)[-1]
        for policy in arguments:
            path = policy.library or find_library(folder, (device,))
            if not path.is_file():
                raise UserError(f"no model library at {path}: compile one with compile.py")
            options = {"library": str(path), "settings": policy.settings, "device": device}
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            name, identity = f"{policy.name} {quantization}", f"{digest} {policy.settings}"
            rows.append(Variant("ours", name, str(folder), options, identity))
    return rows


def chosen(rows: list[Variant], names: str) -> list[Variant]:
    """The rows that the comma-separated ``names`` mean: a whole label, or else the beginning of several.

    UserError for a name that means none.
    """
    labels = [row.label for row in rows]
    found: set[str] = set()
    for name in map(str.strip, names.split(",")):
        meant = [name] if name in labels else [label for label in labels if label.startswith(name)]
        if not meant:
            raise UserError(f"--engines: no row begins with '{name}'; the rows are {', '.join(labels)}")
        found.update(meant)
    return [row for row in rows if row.label in found]
