"""``python -m benchmarks.worker ENGINE SETTINGS``: one engine in one process, which answers requests of JSON lines.

A process of its own keeps the libraries and thread pools of the engines apart and makes peak memory that of one engine.
This file imports the engine and the standard library, so that it runs under an interpreter that has nothing else.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict

from benchmarks.engines.base import EngineSettings
from benchmarks.timing import GenerationTimer

# By engine: module and class.
_CLASSES = {
    "ours": ("benchmarks.engines.ours", "Ours"),
    "llama.cpp": ("benchmarks.engines.llama_cpp", "LlamaCpp"),
    "openvino": ("benchmarks.engines.openvino", "OpenVINO"),
    "vllm": ("benchmarks.engines.vllm", "VLLM"),
    "transformers": ("benchmarks.engines.transformers", "Transformers"),
}
ENGINES = tuple(_CLASSES)
_WARM_UP_TOKENS = (512, 8)  # prompt and answer


def main(engine_name: str, settings_text: str) -> None:
    # Libraries write what they like to stdout: from here on that is stderr, and the answers have the pipe alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, name = _CLASSES[engine_name]
    settings = EngineSettings.from_dict(json.loads(settings_text))
    engine = None
    prompt: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        try:
            match request["do"]:
                case "load":
                    engine = getattr(importlib.import_module(module), name)(settings)
                    prompt = request["prompt"]
                    answer = {"description": engine.description}
                case "prompt":
                    prompt, answer = request["prompt"], {}
                case "warm_up":
                    engine.generate(prompt[: _WARM_UP_TOKENS[0]], _WARM_UP_TOKENS[1], lambda token: None)
                    answer = {}
                case "generate":
                    timer = GenerationTimer(settings.threads)
                    seconds = engine.generate(prompt[: request["tokens"]], request["count"], timer.on_token)
                    answer = asdict(timer.result(seconds))
                case "operators":
                    answer = engine.operator_seconds(prompt[: request["tokens"]])
        except ModuleNotFoundError as error:
            answer = {"error": f"{error.name} is not installed: make peers"}
        except Exception as error:  # whatever a peer raises becomes a gap in the table
            text = str(error).strip()
            answer = {"error": f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
