"""Which functions of libm a compiled library calls: each is a scalar call, none belongs in a kernel."""

import subprocess
from pathlib import Path

_LIBM = (
    "acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp10 exp2 expm1 fabs floor fma"
    " fmax fmin fmod hypot ldexp lgamma log log10 log1p log2 nearbyint pow rint round roundeven sin sincos sinh sqrt"
    " tan tanh tgamma trunc"
).split()
_COMPILER_HELPERS = {"__truncsfbf2", "__extendhfsf2", "__truncsfhf2"}  # half precision without instructions for it
_NAMES = {name + suffix for name in _LIBM for suffix in ("", "f", "l")} | _COMPILER_HELPERS


def libm_calls(library: Path) -> set[str]:
    """Names of libm functions, and of compiler helpers that are as slow, among the undefined symbols of a library."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", "-P", str(library)], check=True, capture_output=True, text=True
    )
    return {line.split()[0].split("@")[0] for line in listing.stdout.splitlines()} & _NAMES
