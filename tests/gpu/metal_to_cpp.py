"""Rewrites the Metal source that TVM emits into C++ for the emulator, with the standard library of tests/gpu/metal.

A kernel becomes what the CUDA form of the same function would be for the emulated driver: it takes that form's
arguments, matched by name.
"""

import re

from gpu import cuda_to_cpp

_PART = re.compile(r"^// Function: (\w+)\n", re.MULTILINE)
_SIGNATURE = re.compile(r"kernel void \w+\((.*?)\n\) \{", re.DOTALL)
_PARAMETER = re.compile(r"\s*(.*?)\s*(\w+) \[\[\s*(\w+).*?\]\]")
_STRUCT = re.compile(r"struct \w+_args_t \{\n(.*?)\};", re.DOTALL)
_FIELD = re.compile(r"(\w+) (\w+)(\[2\])?;")
_SHARED = re.compile(r"^\s*threadgroup (\w+) (\w+)\[(\d+)\];", re.MULTILINE)
_BYTES = {"float": 4, "int": 4, "uint": 4, "half": 2, "long": 8, "char": 1, "uchar": 1, "bool": 1}
_POSITIONS = {"threadgroup_position_in_grid": "block_index", "thread_position_in_threadgroup": "thread_index"}


def kernels(source: str) -> dict[str, str]:
    """The Metal source of each kernel by its name."""
    _, *parts = _PART.split(source)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def threadgroup_bytes(kernel: str) -> int:
    """Bytes of threadgroup memory that the Metal source of a kernel declares."""
    arrays = _SHARED.findall(kernel)
    declared = len(re.findall(r"^\s*threadgroup ", kernel, re.MULTILINE))
    if declared != len(arrays):
        raise ValueError(f"{declared} declarations of threadgroup memory, of which {len(arrays)} are arrays")
    return sum(_BYTES[dtype] * int(extent) for dtype, _, extent in arrays)


def translate(source: str, parameters: dict[str, list[tuple[str, str]]]) -> str:
    """C++ with a kernel descriptor ``emulated_NAME`` for each kernel of Metal ``source``.

    ``parameters`` are (C++ type, name) of each parameter of the CUDA form, by kernel.
    """
    translated = []
    for name, text in kernels(source).items():
        shared = _SHARED.search(text) is not None
        # Each part has structs of the same names; inside of Metal's namespace its functions come before those of C.
        translated.append(
            f"namespace metal::of_{name} {{\n{_with_shared_variables(name, text)}\n"
            '__attribute__((no_sanitize("thread"))) static void call(void** arguments) '
            f"{{ {_call(name, text, parameters[name])} }}\n}}\n"
        )
        translated.append(cuda_to_cpp.descriptor(name, f"metal::of_{name}::call(arguments);", shared))
    return "#include <metal_stdlib>\n" + "".join(translated)


def _with_shared_variables(kernel: str, text: str) -> str:
    return _SHARED.sub(lambda found: cuda_to_cpp.shared_variable(kernel, *found.groups()), text)


def _call(kernel: str, text: str, parameters: list[tuple[str, str]]) -> str:
    """Statements that call ``kernel`` with ``void** arguments``, in the order of ``parameters``."""
    values = {
        name: f"*static_cast<{'void*' if dtype.endswith('*') else dtype}*>(arguments[{i}])"
        for i, (dtype, name) in enumerate(parameters)
    }
    passed, fields = [], ""
    for declared, name, attribute in _PARAMETER.findall(_SIGNATURE.search(text)[1]):
        if attribute in _POSITIONS:
            passed.append(f"position<{declared.strip(', ')}>(emulator::{_POSITIONS[attribute]}())")
        elif name == "arg":
            for _dtype, field, padded in _FIELD.findall(_STRUCT.search(text)[1]):
                target = f"packed.{field}[0]" if padded else f"packed.{field}"
                fields += f" {target} = {values[field]};"
            passed.append("packed")
            fields = f"{kernel}_args_t packed;{fields}"
        else:
            passed.append(f"static_cast<{declared.strip(', ').removeprefix('device ')}>({values[name]})")
    return f"{fields} {kernel}({', '.join(passed)});"
