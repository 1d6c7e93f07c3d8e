"""The environment of a machine with an NVIDIA GPU and nvcc, both emulated, for programs in processes of their own."""

import os
import sys
from pathlib import Path

from gpu import emulated_cuda

_NVCC = """#!{python}
import sys
sys.path[:0] = {path!r}
if "--list-gpu-code" in sys.argv:
    print("sm_80")
else:
    from gpu import emulated_cuda
    code, output = open(sys.argv[-1]).read(), sys.argv[sys.argv.index("-o") + 1]
    open(output, "wb").write(emulated_cuda.device_code(code))
    open({log!r}, "a").write("compiled\\n")
"""


def gpu_machine(folder: Path) -> dict[str, str]:
    """Environment variables; what nvcc was asked to compile makes a line each in ``folder``/compiled."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(_NVCC.format(python=sys.executable, path=sys.path, log=str(folder / "compiled")))
    nvcc.chmod(0o755)
    # Loaded before all else they are found by their names, whatever CUDA is installed.
    preloaded = " ".join(map(str, emulated_cuda.driver_paths()))
    return os.environ | {"CUDA_PATH": str(folder), "LD_PRELOAD": preloaded}
