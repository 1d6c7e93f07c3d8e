"""Rewrites the CUDA C++ that TVM emits into C++ for the emulator.

Three things need it: shared variables get a section of their kernel (so that they can be poisoned and watched), thread
indices become constants of the kernel, and inline PTX becomes calls of stand-ins (emulator/include/ptx.h).
"""

import re

_KERNEL = re.compile(r'extern "C" __global__ void (?:__\w+__\([^)]*\) )?(\w+)\(([^)]*)\) \{\n')
_SHARED = re.compile(
    r'(?:extern (?:"C" )?(?:extern )?)?__shared__ (?:alignas\((\d+)\) )?(?:__align__\((\d+)\) )?'
    r"([^;]*?) (\w+)\[(.*?)\];"
)
_INDICES = {"threadIdx": "thread_index", "blockIdx": "block_index", "blockDim": "block_dim", "gridDim": "grid_dim"}
_MOST_SHARED_BYTES = 232448  # a block's limit on the largest GPU (sm_90)
_ASM = re.compile(r"(?:__asm__|\basm)\s*(?:__volatile__|volatile)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_REGISTER_TYPES = {
    "pred": "bool",
    "f32": "float",
    "b32": "unsigned",
    "u32": "unsigned",
    "s32": "int",
    "b16": "unsigned short",
}


def translate(source: str) -> str:
    """C++ with a kernel descriptor ``emulated_NAME`` for each kernel of CUDA ``source``."""
    source = _translate_asm(source)
    parts, descriptors, end = [], [], 0
    for match in _KERNEL.finditer(source):
        name = match[1]
        body_end = _closing(source, match.end() - 2)
        parts += [source[end : match.end()], _body(source[match.end() : body_end], name)]
        has_shared = "__shared__" in source[match.end() : body_end]
        descriptors.append(descriptor(name, f"emulator::call(&{name}, arguments);", has_shared))
        end = body_end
    return "".join([*parts, source[end:], *descriptors])


def parameters(source: str) -> dict[str, list[tuple[str, str]]]:
    """(type, name) of each parameter of each kernel of CUDA ``source``."""
    return {
        kernel: [
            tuple(re.sub(r"\s*__restrict__\s*|\bconst\b", " ", parameter).strip().rsplit(None, 1))
            for parameter in signature.split(",")
        ]
        for kernel, signature in _KERNEL.findall(source)
    }


def shared_variable(kernel: str, dtype: str, name: str, extent: str, alignment: str = "128") -> str:
    """C++ for an array that the threads of a block share, in the section of ``kernel``."""
    # Raw bytes: a static array of half would be constructed at its first use.
    return (
        f'alignas({alignment}) static __attribute__((section("shared_{kernel}"))) '
        f"char {name}_bytes[sizeof({dtype}) * ({extent})]; "
        f"auto& {name} = reinterpret_cast<{dtype}(&)[{extent}]>({name}_bytes);"
    )


def _body(body: str, kernel: str) -> str:
    def shared(match: re.Match) -> str:
        alignment, other_alignment, dtype, name, extent = match.groups()
        extent = extent or f"{_MOST_SHARED_BYTES} / sizeof({dtype})"
        return shared_variable(kernel, dtype, name, extent, alignment or other_alignment or "128")

    body = _SHARED.sub(shared, body)
    for name, function in _INDICES.items():
        if name in body:
            body = f"  const emulator::Index {name}_ = emulator::{function}();\n" + re.sub(
                rf"\b{name}\b", f"{name}_", body
            )
    return body


def descriptor(kernel: str, call: str, has_shared: bool) -> str:
    """C++ of what the driver knows of ``kernel``: statements that call it with ``void** arguments``, shared memory."""
    section = f"shared_{kernel}"
    # Weak: the compiler leaves out an array that is never read.
    weak = "__attribute__((weak))"
    bounds = f"extern char {weak} __start_{section}[], {weak} __stop_{section}[];\n" if has_shared else ""
    shared = f"__start_{section}, __stop_{section}" if has_shared else "nullptr, nullptr"
    return (
        f'\nextern "C" {{\n{bounds}extern const emulator::Kernel emulated_{kernel};\n'
        f'const emulator::Kernel emulated_{kernel} = {{"{kernel}", '
        f"[](void** arguments) {{ {call} }}, {shared}}};\n}}\n"
    )


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at ``start``; brackets in strings do not count."""
    pairs = {"(": ")", "{": "}"}
    opening, closing, depth = text[start], pairs[text[start]], 0
    for match in re.finditer(rf'"(?:[^"\\]|\\.)*"|[{opening}{closing}]', text[start:]):
        if match[0] == opening:
            depth += 1
        elif match[0] == closing:
            depth -= 1
            if depth == 0:
                return start + match.start()
    raise ValueError(f"unbalanced {opening} in CUDA source")


def _split(text: str, separator: str) -> list[str]:
    """``text`` split at ``separator`` outside of strings, parentheses and braces."""
    parts, depth, begin = [], 0, 0
    for match in re.finditer(rf'"(?:[^"\\]|\\.)*"|[(){{}}\[\]]|{separator}', text):
        if match[0] in "({[":
            depth += 1
        elif match[0] in ")}]":
            depth -= 1
        elif match[0] == separator and depth == 0:
            parts.append(text[begin : match.start()])
            begin = match.end()
    return [*parts, text[begin:]]


def _translate_asm(source: str) -> str:
    parts, end = [], 0
    for match in _ASM.finditer(source):
        close = _closing(source, match.end() - 1)
        parts += [source[end : match.start()], _calls(source[match.end() : close])]
        end = close + 1
    return "".join([*parts, source[end:]])


def _calls(statement: str) -> str:
    """The C++ block for the inside of one ``asm(...)``."""
    template, *lists = _split(statement, ":")
    operands = [
        re.sub(r'^\s*(?:\[\w+\]\s*)?"[^"]*"\s*', "", operand)
        for operand_list in lists[:2]
        for operand in _split(operand_list, ",")
        if operand.strip()
    ]
    text = "".join(_STRING.findall(template)).replace("\\n", "\n").replace("\\t", " ")
    calls = []
    for instruction in text.split(";"):
        instruction = re.sub(r"^[\s{}]+", "", instruction).strip()
        if instruction:
            calls.append(_call(instruction, operands))
    return "{ " + " ".join(calls) + " }"


def _call(instruction: str, operands: list[str]) -> str:
    register = re.fullmatch(r"\.reg\s+\.(\w+)\s+(\w+)", instruction)
    if register:
        return f"{_REGISTER_TYPES.get(register[1], 'unsigned long long')} {register[2]};"
    predicate, mnemonic, arguments = re.fullmatch(r"(?:@(!?\w+)\s+)?([\w.:]+)(.*)", instruction, re.DOTALL).groups()
    arguments = re.sub(r"[\[\]{}]", " ", arguments)
    arguments = re.sub(r"%(\d+)", lambda match: f"({operands[int(match[1])]})", arguments).strip()
    call = f"emulator::ptx::{re.sub(r'[.:]+', '_', mnemonic)}({arguments});"
    return f"if ({predicate}) {call}" if predicate else call
