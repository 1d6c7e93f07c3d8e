"""Makes a whole model folder: weights, tokenizer and chat configuration, all of it or nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relax_models.atomic_folder import atomic_folder
from relax_models.chat_config import chat_config, read_generation_config, write_chat_config
from relax_models.config import ModelConfig
from relax_models.convert_weights import WeightFormat, check_weights, total_bytes, write_tensor_cache
from relax_models.tokenizer_files import FILES, write_tokenizer
from relax_models.weight_source import GGUFSource, open_weight_source
from runtime.policy import Policy


def write_model_folder(
    weights: Path | str,
    config: ModelConfig,
    quantization: str,
    policy: Policy,
    params: Sequence[Mapping[str, Any]],
    formats: Mapping[str, WeightFormat],
    weight_format_name: str,
    output_dir: Path | str,
    progress: bool = True,
) -> None:
    """Makes `output_dir` from a GGUF file or a Hugging Face folder.

    It gets params_shard_*.bin, tensor-cache.json, tokenizer.json, tokenizer_config.json and mlc-chat-config.json. An
    older model folder there is replaced.

    `policy` is the library's; the other parameters are those of `convert_weights`. Raises UserError with nothing left
    behind; other exceptions (KeyboardInterrupt) leave nothing behind either.
    """
    source = open_weight_source(weights)
    is_gguf = isinstance(source, GGUFSource)
    check_weights(source, params, config)
    with atomic_folder(output_dir, total_bytes(params) + _tokenizer_bytes(source.path)) as folder:
        tokenizer = write_tokenizer(source.file if is_gguf else source.path, folder)
        generation = {} if is_gguf else read_generation_config(source.path)
        write_chat_config(folder, chat_config(config, quantization, weight_format_name, tokenizer, generation, policy))
        write_tensor_cache(source, params, config, formats, weight_format_name, folder, progress)


# tokenizer.json of a vocabulary of 152,000 tokens, the largest that a GGUF file is rebuilt to, takes 12 MB.
_REBUILT_TOKENIZER_BYTES = 16 << 20


def _tokenizer_bytes(source: Path) -> int:
    files = [source / name for name in FILES]
    return sum(file.stat().st_size for file in files if file.is_file()) or _REBUILT_TOKENIZER_BYTES
