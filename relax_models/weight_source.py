"""Where weights come from: a Hugging Face folder or a GGUF file, one tensor at a time, under Hugging Face names."""

import json
from pathlib import Path
from typing import Protocol

import numpy as np

from relax_models.gguf_file import GGUFFile
from relax_models.safetensors_file import SafetensorsFile
from runtime.errors import UserError


class WeightSource(Protocol):
    """Weights under Hugging Face names ("model.layers.0.self_attn.q_proj.weight"), in Hugging Face layout."""

    path: Path

    def names(self) -> list[str]:
        """Every tensor that can be loaded."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, rows first. UserError when the source has no such tensor."""

    def bits_per_weight(self, name: str) -> float:
        """Stored bits an element, which tells the better of two copies of one table."""

    def load_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Float32 of rows start..stop (elements, for a vector), a new array. UserError as `shape`."""

    def load(self, name: str) -> np.ndarray:
        """The whole tensor in float32."""


def _missing(path: Path, name: str) -> UserError:
    return UserError(f"{path} has no tensor {name}; the weights belong to another model or are incomplete.")


class HFFolderSource:
    """model.safetensors, or the parts listed in model.safetensors.index.json, of a Hugging Face folder."""

    def __init__(self, folder: Path | str):
        self.path = Path(folder)
        index_path = self.path / "model.safetensors.index.json"
        single_path = self.path / "model.safetensors"
        if index_path.is_file():
            try:
                weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
                parts = sorted(set(weight_map.values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{index_path} is corrupt: it has no weight_map; get it again.") from None
            for part in parts:
                if not (self.path / part).is_file():
                    raise UserError(f"{self.path} lacks {part}, which {index_path.name} lists; get that file.")
        elif single_path.is_file():
            weight_map, parts = None, [single_path.name]
        else:
            raise UserError(
                f"{self.path} has neither model.safetensors nor model.safetensors.index.json; "
                "give a folder with safetensors weights or a GGUF file."
            )
        files = {part: SafetensorsFile(self.path / part) for part in parts}
        self._files = {name: file for file in files.values() for name in file.shapes}
        for name, part in (weight_map or {}).items():
            if name not in files[part].shapes:
                raise UserError(f"{self.path / part} has no tensor {name}, which {index_path.name} puts there.")

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            raise _missing(self.path, name)
        return self._files[name]

    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file(name).shapes[name]

    def bits_per_weight(self, name: str) -> float:
        return self._file(name).bits_per_weight(name)

    def load_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._file(name).load_rows(name, start, stop)

    def load(self, name: str) -> np.ndarray:
        return self.load_rows(name, 0, self.shape(name)[0])


# The tensors of the decoder families in relax_models; the gguf package's name map gives their GGUF names.
_HF_MODULES = ("model.embed_tokens", "model.norm", "lm_head")
_HF_LAYER_MODULES = (
    *("input_layernorm", "post_attention_layernorm"),
    *(f"self_attn.{module}" for module in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{module}" for module in ("gate_proj", "up_proj", "down_proj")),
)


class GGUFSource:
    """A GGUF file. Quantized tensors are dequantized a block of rows at a time.

    llama.cpp stores the q and k projections of architecture "llama" with the rotary halves interleaved
    (LlamaModel.permute in its convert_hf_to_gguf.py); that is undone. Its converters of qwen2, qwen3 and
    pangu-embedded leave these rows as they are.
    """

    def __init__(self, file: GGUFFile | Path | str):
        self.file = file if isinstance(file, GGUFFile) else GGUFFile(file)
        self.path = self.file.path
        self._gguf_names = _gguf_names(self.file)

    def _tensor(self, name: str):
        if name not in self._gguf_names:
            raise _missing(self.path, name)
        return self.file.tensors[self._gguf_names[name]]

    def names(self) -> list[str]:
        return list(self._gguf_names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def bits_per_weight(self, name: str) -> float:
        tensor = self._tensor(name)
        return 8 * tensor.nbytes / np.prod(tensor.shape)

    def load_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        tensor = self._tensor(name)
        raw = self.file.raw_rows(tensor.name)
        if len(tensor.shape) == 1:
            values = self.file.dequantize(tensor.name, raw)[0]
            order = self._row_order(name, len(values))
            values = (values if order is None else values[order])[start:stop]
        else:
            order = self._row_order(name, len(raw))
            rows = raw[start:stop] if order is None else raw[order[start:stop]]
            values = self.file.dequantize(tensor.name, rows)
        # A float32 tensor comes as a view of the file, whose pages are about to be dropped.
        values = np.array(values, np.float32)
        self.file.drop_pages()
        return values

    def load(self, name: str) -> np.ndarray:
        return self.load_rows(name, 0, self.shape(name)[0])

    def _row_order(self, name: str, rows: int) -> np.ndarray | None:
        """Stored row of each Hugging Face row, or None where both orders are the same."""
        if self.file.architecture != "llama" or not any(part in name for part in (".q_proj.", ".k_proj.")):
            return None
        key = "llama.attention.head_count" + ("_kv" if ".k_proj." in name else "")
        heads = self.file.metadata.get(key, self.file.metadata.get("llama.attention.head_count"))
        if not isinstance(heads, int) or heads <= 0 or rows % (2 * heads):
            raise UserError(f"{self.path}: {key} = {heads!r} does not divide the {rows} rows of tensor {name}.")
        # Stored row (head, i, half) is Hugging Face row (head, half, i).
        return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def _gguf_names(file: GGUFFile) -> dict[str, str]:
    """Hugging Face tensor name -> GGUF tensor name, of the tensors that the file has.

    A tensor without a counterpart keeps its GGUF name, so that it is noticed as one that the model does not use.
    """
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    architectures = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if file.architecture not in architectures:
        raise UserError(
            f"{file.path} has the architecture {file.architecture!r}, which the gguf package does not know; "
            "use a Llama, Qwen or openPangu model."
        )
    layers = file.metadata.get(f"{file.architecture}.block_count")
    if not isinstance(layers, int):
        raise UserError(f"{file.path} is corrupt: {file.architecture}.block_count is {layers!r}; get the file again.")
    name_map = get_tensor_name_map(architectures[file.architecture], layers)
    modules = [*_HF_MODULES, *(f"model.layers.{i}.{module}" for i in range(layers) for module in _HF_LAYER_MODULES)]
    candidates = (
        (module + suffix, name_map.get_name(module + suffix, try_suffixes=(suffix,)))
        for module in modules
        for suffix in (".weight", ".bias")
    )
    names = {hf_name: gguf_name for hf_name, gguf_name in candidates if gguf_name in file.tensors}
    # RoPE's divisors are part of the configuration, which config_gguf reads.
    unknown = file.tensors.keys() - names.values() - {"rope_freqs.weight"}
    return names | {name: name for name in file.tensors if name in unknown}


def open_weight_source(path: Path | str) -> WeightSource:
    """A GGUF file or a Hugging Face folder. UserError when it is neither."""
    path = Path(path)
    if path.is_dir():
        return HFFolderSource(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a GGUF file or a Hugging Face folder.")
    return GGUFSource(path)
