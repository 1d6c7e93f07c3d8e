"""The configuration of a Hugging Face folder with a stretched context, for the engines that read one."""

import json
from pathlib import Path
from typing import Any

from benchmarks.engines.base import EngineSettings


def rope_overrides(settings: EngineSettings) -> dict[str, Any]:
    """What differs from config.json; nothing without ``settings.yarn``."""
    if settings.yarn is None:
        return {}
    config = json.loads((Path(settings.model) / "config.json").read_text())
    yarn = {"factor": settings.yarn.factor, "original_max_position_embeddings": settings.yarn.original}
    return {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": config["rope_theta"], **yarn},
        "max_position_embeddings": int(settings.yarn.factor * settings.yarn.original),
    }
