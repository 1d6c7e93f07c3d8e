"""``python -m benchmarks.worker ENGINE SETTINGS``: one engine in one process, which answers requests of JSON lines.

A process of its own keeps the libraries and thread pools of the engines apart and makes peak memory that of one engine.
This file imports nothing but the engine, so that it runs under an interpreter that has nothing else.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict

from benchmarks.engines.base import EngineSettings

_CLASSES = {
    "ours": ("benchmarks.engines.ours", "Ours"),
    "llama.cpp": ("benchmarks.engines.llama_cpp", "LlamaCpp"),
    "openvino": ("benchmarks.engines.openvino", "OpenVINO"),
}
ENGINES = tuple(_CLASSES)


def main(engine_name: str, settings: str) -> None:
    # Libraries write what they like to stdout: from here on that is stderr, and the answers have the pipe alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, name = _CLASSES[engine_name]
    engine = None
    prompt: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        try:
            match request["do"]:
                case "load":
                    engine = getattr(importlib.import_module(module), name)(EngineSettings(**json.loads(settings)))
                    prompt = request["prompt"]
                    engine.warm_up(prompt[: request["warm_up"]])
                    answer = {"description": engine.description}
                case "prefill":
                    answer = asdict(engine.prefill(prompt[: request["tokens"]]))
                case "decode":
                    answer = asdict(engine.decode(prompt[: request["tokens"]], request["count"]))
        except Exception as error:  # whatever a peer raises becomes a gap in the table
            answer = {
                "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            }
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
