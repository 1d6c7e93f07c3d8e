"""Models from the Hugging Face hub, for users with network."""

import re
from pathlib import Path

from runtime.errors import UserError

# "organisation/model", or "organisation/model/file.gguf" for one file of a repository.
_HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[^\\]+\.gguf))?")
_FILES = ["*.safetensors", "*.safetensors.index.json", "*.jinja", "tokenizer.model"]
_FILES += ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def local_model(name: str) -> Path:
    """The folder or GGUF file of `name`: a path as it is, a hub id ("Qwen/Qwen2.5-0.5B-Instruct", or a GGUF file of a
    repository, "org/model-GGUF/model-q8_0.gguf") downloaded into Hugging Face's cache.

    UserError when the name is neither, or the download fails.
    """
    if name and Path(name).exists():
        return Path(name)
    match = _HUB_ID.fullmatch(name)
    if not match or name.startswith((".", "/", "~")):
        raise UserError(f"{name!r} is neither a file, a folder nor a hub id such as Qwen/Qwen2.5-0.5B-Instruct.")
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if match["file"]:
            return Path(hf_hub_download(match["repository"], match["file"]))
        return Path(snapshot_download(match["repository"], allow_patterns=_FILES))
    except (OSError, ValueError) as error:  # what huggingface_hub raises, network errors included
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name} is no local path, and getting it from the hub failed: {reason}") from None
