"""Values of command-line options that several benchmarks take."""

from runtime.errors import UserError


def token_counts(text: str, option: str) -> list[int]:
    """The positive numbers in "512,2048"; UserError names ``option`` for anything else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} {text} is not a comma-separated list of token counts")
    return numbers
