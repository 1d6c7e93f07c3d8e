"""The command line for one prompt, on the toy model."""

import pytest
from toy_library import CHUNK
from typer.testing import CliRunner

from runtime.engine import Engine
from runtime.generate import app


@pytest.fixture
def run(toy_dist):
    def run(*arguments, folder=toy_dist / "Toy-q0f32-MLC"):
        return CliRunner().invoke(app, [str(folder), *map(str, arguments)])

    return run


def answer(toy_dist, prompt, max_tokens):
    engine = Engine(toy_dist / "Toy-q0f32-MLC")
    sampling = engine.default_sampling.changed(max_tokens=max_tokens)
    return "".join(output.text for output in engine.generate(prompt, sampling))


def test_answer_on_stdout_progress_and_speed_on_stderr(run, toy_dist):
    result = run("--prompt", "the fox", "--max-tokens", 6)
    assert result.exit_code == 0
    assert result.stdout == answer(toy_dist, [{"role": "user", "content": "the fox"}], 6) + "\n"
    n = len(Engine(toy_dist / "Toy-q0f32-MLC").encode([{"role": "user", "content": "the fox"}]))
    *progress, speed = result.stderr.splitlines()
    assert progress == [f"prefill {done}/{n} tokens" for done in (*range(CHUNK, n, CHUNK), n)]
    assert speed.startswith(f"{n} tokens in, 6 out; prefill: ")
    assert run("--prompt", "the fox", "--max-tokens", 6, "--raw").stdout == answer(toy_dist, "the fox", 6) + "\n"


def test_question_about_a_file(run, toy_dist, tmp_path):
    path = tmp_path / "document.txt"
    path.write_text("the lazy dog\n\n", encoding="utf-8")
    result = run("--prompt-file", path, "--question", "fox", "--max-tokens", 5)
    assert result.stdout == answer(toy_dist, [{"role": "user", "content": "the lazy dog\n\nfox"}], 5) + "\n"


def test_profile_of_prefill_and_decode(run, toy_dist):
    result = run("--prompt", "the fox", "--max-tokens", 6, "--profile")
    assert result.stdout == answer(toy_dist, [{"role": "user", "content": "the fox"}], 6) + "\n"
    titles = [line.split()[0] for line in result.stderr.splitlines() if line.endswith("share  cores")]
    assert titles == ["prefill", "decode"]
    assert result.stderr.count("\nall operators ") == 2


def test_sampling_options(run):
    options = ("--prompt", "fox", "--temperature", 5, "--top-p", 0.9, "--set", "max_tokens=8")
    first, again, other = (run(*options, "--seed", seed) for seed in (1, 1, 2))
    assert first.stdout == again.stdout != other.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one prompt: either --prompt or --prompt-file"),
        (["--prompt", "a", "--prompt-file", "b"], "give one prompt: either --prompt or --prompt-file"),
        (["--prompt", "a", "--question", "b"], "--question asks about a document: name it with --prompt-file"),
        (["--prompt", " \n"], "the prompt is empty: give it some text"),
        (["--prompt-file", "{tmp}/none"], "the prompt file {tmp}/none cannot be read: No such file or directory"),
        (["--prompt-file", "{tmp}"], "the prompt file {tmp} cannot be read: Is a directory"),
        (["--prompt-file", "{tmp}/latin1"], "the prompt file {tmp}/latin1 is not UTF-8 (byte 3): convert it first"),
        (["--prompt-file", "{tmp}/empty"], "the prompt file {tmp}/empty is empty: give it some text"),
        (["--prompt", "a", "--temperature", "-1"], "temperature=-1.0 is not allowed: Input should be greater than"),
        (["--prompt", "a", "--set", "x=1"], "there is no setting x: choose from"),
        (["--prompt", "a", "--policy", "capacity=1"], "policy setting capacity=1 is not allowed: it must be above"),
        (["--prompt", "a", "--policy", "window=64"], "window is fixed when a library is compiled"),
        (["--prompt", "a", "--model-lib", "{tmp}/none.so"], "no model library at {tmp}/none.so"),
        (["--prompt", "fox " * 60], "tokens, but the context holds 64 including the answer: shorten the prompt"),
    ],
)
def test_mistakes_are_one_line_and_status_1(run, tmp_path, arguments, message):
    (tmp_path / "latin1").write_bytes(b"caf\xe9")
    (tmp_path / "empty").touch()
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message.format(tmp=tmp_path) in result.stderr


def test_folder_that_is_no_model(run, tmp_path):
    result = run("--prompt", "a", folder=tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path} is no MLC model folder" in result.stderr
