"""How a compiled model becomes a file: one module for each form, chosen by the target.

:func:`library_packaging` finds what the form needs (compiler, toolkit) before anything is compiled, and says what is
missing. Then ``packaging.build`` runs TVM's build and ``packaging.export`` writes the file::

    packaging = library_packaging(target, cuda_archs(text))
    executable = packaging.build(lambda: relax.build(mod, target, relax_pipeline=...))
    packaging.export(executable, path)

``packaging.suffix`` ends the file's name, and ``packaging.next_step`` tells the user what is left to do.
"""

from tvm.target import Target

from .base import Packaging
from .cuda_library import CudaLibrary
from .metal_library import MetalLibrary
from .shared_library import SharedLibrary
from .webgpu_archive import WebGPUArchive


def library_packaging(target: Target, cuda_archs: tuple[int, ...] = ()) -> Packaging:
    """The form of a library for ``target``.

    Parameters
    ----------
    target : as :func:`passes.target.parse_target` returns it, a GPU target with its host.
    cuda_archs : compute capabilities that a CUDA library gets machine code for; empty: the one of ``target``.

    Raises
    ------
    UserError : a compiler or toolkit is missing; the message says how to get it.
    """
    host = target.host or target
    triple = str(host.attrs["mtriple"]) if "mtriple" in host.attrs else None
    kind = target.kind.name
    if kind == "cuda":
        return CudaLibrary(cuda_archs or (int(str(target.attrs["arch"]).removeprefix("sm_")),), triple)
    if kind == "metal":
        return MetalLibrary()
    if kind == "webgpu":
        return WebGPUArchive()
    return SharedLibrary(triple)
