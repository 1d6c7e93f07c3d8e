"""From the command line's target text to a TVM target."""

import json

from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu, llvm_get_system_triple, llvm_is_valid_cpu

from runtime.errors import UserError

SUPPORTED = ("llvm",)
KNOWN = ("llvm", "cuda", "metal", "webgpu", "vulkan", "rocm", "opencl")


def parse_target(text: str, mcpu: str | None = None) -> Target:
    """``llvm`` (this machine), ``llvm -mcpu=... -mtriple=... -mattr=...`` or a JSON dict; ``mcpu`` overrides the CPU.

    Raises
    ------
    UserError : an unknown kind, a kind that does not work yet, an unknown CPU or option.
    """
    fields = _json_fields(text) if text.lstrip().startswith("{") else _option_fields(text)
    kind = fields.get("kind")
    if kind not in KNOWN:
        raise UserError(f"unknown target '{text}': use one of {', '.join(KNOWN)}")
    if kind not in SUPPORTED:
        raise UserError(f"target '{kind}' cannot be compiled yet: use --target llvm")
    if mcpu is not None:
        fields["mcpu"] = mcpu
    if "mcpu" not in fields and "mtriple" not in fields:
        fields["mcpu"] = llvm_get_system_cpu()
    try:
        target = Target(fields)
    except Exception as error:  # TVM reports a bad field with an InternalError that names it
        raise UserError(f"target '{text}' is not valid: {str(error).strip().splitlines()[-1]}") from None
    if "mcpu" in fields and not llvm_is_valid_cpu(fields["mcpu"], fields.get("mtriple", llvm_get_system_triple())):
        raise UserError(
            f"unknown CPU '{fields['mcpu']}': name one that LLVM knows, such as znver4, haswell or cortex-a76"
        )
    return target


def _json_fields(text: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"target {text} is not valid JSON: {error}") from None


def _option_fields(text: str) -> dict:
    kind, *options = text.split() or [""]
    fields: dict = {"kind": kind}
    for option in options:
        key, separator, value = option.lstrip("-").partition("=")
        if not option.startswith("-") or not separator:
            raise UserError(f"target option '{option}' in '{text}' is not of the form -key=value")
        fields[key] = value.split(",") if key == "mattr" else value
    return fields
