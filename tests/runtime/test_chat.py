"""The conversation and its commands, on the toy model."""

import os
import signal
import subprocess
import sys

import pytest
from toy_library import CHUNK

from runtime.chat import Chat
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.prompt_cache import PromptCache
from runtime.settings import apply_settings


@pytest.fixture(scope="module")
def engine(toy_dist):
    engine = Engine(toy_dist / "Toy-q0f32-MLC")
    engine.default_sampling = apply_settings(engine.default_sampling, "max_tokens=4")
    return engine


@pytest.fixture
def chat(engine, monkeypatch):
    chat = Chat(engine)
    chat.prompts = []
    generate = engine.generate
    monkeypatch.setattr(engine, "generate", lambda p, *a, **k: (chat.prompts.append(p), generate(p, *a, **k))[1])
    return chat


def contents(prompt):
    return [(message["role"], message["content"]) for message in prompt]


def test_the_conversation_goes_on_until_reset(chat, capsys):
    assert chat.handle("the fox")
    answer = capsys.readouterr().out.removesuffix(" [cut at the length limit]\n")
    chat.handle("dog")
    assert contents(chat.prompts[1]) == [("user", "the fox"), ("assistant", answer), ("user", "dog")]
    chat.handle("/reset")
    chat.handle("brown")
    assert contents(chat.prompts[2]) == [("user", "brown")]


def test_oldest_turns_leave_when_the_context_is_full(chat, engine):
    chat.handle("/set max_tokens=1")
    for word in ("the", "fox", "dog", "over", "quick"):
        chat.handle(word)
    lengths = [len(engine.encode(prompt)) for prompt in chat.prompts]
    assert max(lengths) < engine.context_window_size
    assert contents(chat.prompts[-1])[-1] == ("user", "quick")
    assert 1 < len(chat.prompts[-1]) < 9
    with pytest.raises(UserError, match="the prompt has .* tokens, but the context holds 64"):
        chat.handle("fox " * 60)
    # The message that did not fit has not changed the conversation.
    chat.handle("lazy")
    assert ("user", "quick") in contents(chat.prompts[-1])


def test_set_changes_and_shows_settings(chat, capsys):
    chat.handle("/set temperature=0.5;top_p=0.8;seed=23;max_tokens=2;stop=a,b")
    chat.handle("/set")
    shown = capsys.readouterr().out
    for setting in ("temperature=0.5", "top_p=0.8", "seed=23", "max_tokens=2", "stop=('a', 'b')"):
        assert setting in shown
    for bad in ("temperature=hot", "top_k=4", "seed"):
        with pytest.raises(UserError):
            chat.handle(f"/set {bad}")


def test_set_changes_the_policy_too(chat, engine, capsys):
    policy = engine.policy
    chat.handle("/set temperature=0.25;base_budget=4096;capacity=512")
    assert engine.policy == policy.changed("base_budget=4096;capacity=512")
    chat.handle("/set")
    shown = capsys.readouterr().out
    assert "temperature=0.25;" in shown and ";base_budget=4096;" in shown and ";capacity=512;" in shown
    assert "segment_size" not in shown  # cannot be set
    for bad in ("temperature=0.75;capacity=1", "temperature=0.75;segment_size=64"):
        with pytest.raises(UserError):
            chat.handle(f"/set {bad}")
    assert chat._sampling.temperature == 0.25  # nothing of a text with a mistake counts
    engine.set_policy("base_budget=3584;capacity=2048")
    assert engine.policy == policy


def test_stats_help_exit_and_unknown_commands(chat, engine, capsys):
    chat.handle("/stats")
    assert capsys.readouterr().out == "N/A\n"
    chat.handle("fox")
    capsys.readouterr()
    chat.handle("/stats")
    cached = len(engine._sequence.token_ids)
    shown = capsys.readouterr().out
    assert shown.startswith("prefill: ") and shown.endswith(f", cache: {cached} entries for {cached} tokens\n")
    chat.handle("/help")
    assert "/reset" in capsys.readouterr().out
    assert chat.handle("   ") and not chat.handle("/exit")
    with pytest.raises(UserError, match="there is no command /quit: /help lists them"):
        chat.handle("/quit")
    assert len(chat.prompts) == 1
    chat.handle("/etc/passwd")
    assert len(chat.prompts) == 2


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(chat, engine, monkeypatch, capsys):
    decode, calls = engine._library.decode, []

    def decode_and_interrupt(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return decode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine._library, "decode", decode_and_interrupt)
        chat.handle("the fox")
    assert len(calls) == 2 and capsys.readouterr().out.endswith(" [stopped]\n")
    cached = len(engine._sequence.token_ids)
    chat.handle("dog")
    assert contents(chat.prompts[-1])[0] == ("user", "the fox") and len(chat.prompts[-1]) == 3
    assert chat._last_usage.cached_tokens >= cached - 3  # all but what the text of the answer encodes differently


def test_ctrl_c_during_the_prefill_takes_the_message_back(chat, engine, monkeypatch, capsys):
    prefill = engine._library.prefill
    with monkeypatch.context() as patch:
        patch.setattr(engine._library, "prefill", lambda *a: (os.kill(os.getpid(), signal.SIGINT), prefill(*a))[1])
        chat.handle("the quick brown fox jumps over the lazy dog " * 2)
    assert capsys.readouterr().out == " [stopped]\n"
    chat.handle("dog")
    assert contents(chat.prompts[-1]) == [("user", "dog")]


def run_chat(folder, text: bytes) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "runtime.chat", folder], input=text, capture_output=True)


def test_command_line(toy_dist, tmp_path):
    lines = [b"/set max_tokens=3", b"the\\", b"fox", b"/nope", b"caf\xe9", b"/stats", b"/exit", b"never", b""]
    done = run_chat(toy_dist / "Toy-q0f32-MLC", b"\n".join(lines))
    assert done.returncode == 0
    assert b"prefill: " in done.stdout.splitlines()[-1]
    errors = [line for line in done.stderr.splitlines() if not line.startswith(b"prefill")]
    assert errors == [
        b"error: there is no command /nope: /help lists them",
        b"error: the prompt is not valid UTF-8: convert it first",
    ]
    done = run_chat(tmp_path / "none", b"")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"error: no model folder at {tmp_path / 'none'}: make one with compile.py\n"


def test_every_conversation_begins_with_the_document(engine, tmp_path, monkeypatch):
    chat = Chat(engine, "the lazy dog\n\n", PromptCache(engine, tmp_path / "cache"))
    prompts = []
    generate = engine.generate
    monkeypatch.setattr(engine, "generate", lambda p, *a, **k: (prompts.append(p), generate(p, *a, **k))[1])
    for line in ("fox", "over", "/reset", "quick"):
        chat.handle(line)
    first, second, third = (engine.tokenizer.decode(ids) for ids in prompts[::2])  # each is checked, then answered
    assert "user\nthe lazy dog\n\nfox" in first and second.count("lazy") == 1 and "user\nover" in second
    assert "user\nthe lazy dog\n\nquick" in third
    assert chat._last_usage.cached_tokens > 4


TERMINATED = """
import os, signal
from runtime import chat, library
prefill = library.ModelLibrary.prefill

def prefill_and_kill(self, *args):
    os.kill(os.getpid(), signal.SIGTERM)
    return prefill(self, *args)

library.ModelLibrary.prefill = prefill_and_kill
chat.app()
"""


def test_terminated_chat_saves_what_it_has(toy_dist, tmp_path):
    path = tmp_path / "cache"
    command = [sys.executable, "-c", TERMINATED, str(toy_dist / "Toy-q0f32-MLC"), "--cache", str(path)]
    done = subprocess.run(command, input=b"the quick brown fox jumps over the lazy dog\nnever\n", capture_output=True)
    assert done.returncode == 128 + signal.SIGTERM and b"never" not in done.stdout
    assert f"cache: {CHUNK} tokens saved in {path}".encode() in done.stderr and path.is_file()
