"""``python -m benchmarks.requantize SOURCE DESTINATION TYPE``: a GGUF file in one quantization type, by llama.cpp."""

import os
import subprocess
import sys
from pathlib import Path


def requantized(source: Path, quant_type: str, folder: Path, python: str) -> Path:
    """A copy of ``source`` in ``folder`` whose matrices, embedding and output included, are ``quant_type`` (as Q4_0).

    Made once; ``python`` is an interpreter that has llama-cpp-python. CalledProcessError if that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    destination = folder / f"{source.stem}-{quant_type}.gguf"
    if not destination.is_file() or destination.stat().st_mtime < source.stat().st_mtime:
        command = [python, "-m", "benchmarks.requantize", str(source), str(destination), quant_type]
        subprocess.run(command, check=True, capture_output=True, text=True)
    return destination


def _requantize(source: Path, destination: Path, quant_type: str) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant_type}")
    params.allow_requantize = True
    params.pure = True
    unfinished = destination.with_suffix(".part")
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(unfinished).encode(), params)
    if status != 0:
        unfinished.unlink(missing_ok=True)
        sys.exit(f"llama.cpp cannot quantize {source} to {quant_type} (status {status})")
    os.replace(unfinished, destination)


if __name__ == "__main__":
    _requantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
