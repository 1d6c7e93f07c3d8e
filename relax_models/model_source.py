"""What ``--model`` names: a preset, a Hugging Face folder, a GGUF file or an MLC model folder."""

from dataclasses import dataclass
from pathlib import Path

from relax_models.config import ModelConfig
from relax_models.config_gguf import config_from_gguf
from relax_models.config_hf import config_from_hf_folder, config_from_mlc
from relax_models.presets import preset
from runtime.artifact import CHAT_CONFIG_FILE, MODEL_DIR_SUFFIX, read_json
from runtime.errors import UserError


@dataclass(frozen=True)
class ModelSource:
    """``name`` goes into file names; ``config`` is what is compiled."""

    name: str
    config: ModelConfig


def resolve_model(text: str) -> ModelSource:
    """The model that ``text`` names on the command line.

    Raises UserError when it is neither an existing file or folder of a known kind nor a preset.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return ModelSource(path.stem, config_from_gguf(path))
    if path.is_dir():
        return _from_folder(path)
    if "/" in text or path.suffix == ".gguf":
        raise UserError(f"no model at {text}: give a folder, a GGUF file or the name of a preset")
    found = preset(text)
    return ModelSource(found.display_name, found.config)


def _from_folder(path: Path) -> ModelSource:
    name = path.resolve().name
    if (path / CHAT_CONFIG_FILE).is_file():
        chat_config = read_json(path / CHAT_CONFIG_FILE, "it describes an MLC model folder")
        suffix = f"-{chat_config.get('quantization')}{MODEL_DIR_SUFFIX}"
        return ModelSource(name.removesuffix(suffix), config_from_mlc(chat_config))
    return ModelSource(name, config_from_hf_folder(path))
