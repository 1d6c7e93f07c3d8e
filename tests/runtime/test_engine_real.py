"""SmolLM2-135M-Instruct, compiled in float32, against Hugging Face transformers on the same GGUF file."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from runtime.engine import Engine
from runtime.sampling import SamplingParams

ROOT = Path(__file__).parents[2]
GGUF = ROOT / "models" / "SmolLM2-135M-Instruct.gguf"
NUM_TOKENS = 64

pytestmark = pytest.mark.skipif(not GGUF.is_file(), reason=f"{GGUF} is missing; make test gets it")


def _ledger(num_entries: int) -> str:
    """A long text that is the same on every machine."""
    rng = random.Random(7)
    people, goods = ("Ada", "Boris", "Chen", "Dalia"), ("apples", "salt", "rope", "lamp oil", "paper")
    entries = (
        f"Entry {i}: {rng.choice(people)} bought {rng.randint(2, 90)} units of {rng.choice(goods)} "
        f"for {rng.randint(1, 40)} coins."
        for i in range(num_entries)
    )
    return "\n".join(entries)


PROMPTS = {
    "english": "The history of the printing press begins in",
    "code": "def fibonacci(n: int) -> int:\n    ",
    "chat": [{"role": "user", "content": "Name three primary colours and say where you see them."}],
    "french": "La ville de Paris est connue pour",
    "chinese": "今天天气很好，我们",
    "emoji": "🎉 Happy birthday 🎂 to my friend who",
    "arithmetic": [{"role": "user", "content": "What is 12 + 30? Explain step by step."}],
    "list": "Shopping list:\n1. Eggs\n2. Milk\n3.",
    "long": [{"role": "user", "content": _ledger(110) + "\n\nWho bought something in Entry 3, and what was it?"}],
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    dist = tmp_path_factory.mktemp("dist")
    command = ["compile.py", "--model", GGUF, "--weights", GGUF, "--quantization", "q0f32", "-o", dist]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return Engine(next(dist.glob("*-q0f32-MLC")))


@pytest.fixture(scope="module")
def reference() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32)


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_text_is_that_of_hugging_face(engine, reference, name):
    prompt = engine.encode(PROMPTS[name])
    assert (len(prompt) > 2000) == (name == "long")
    outputs = list(engine.generate(PROMPTS[name], SamplingParams(temperature=0, max_tokens=NUM_TOKENS)))
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            eos_token_id=sorted(engine.stop_token_ids),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    assert [output.token_id for output in outputs] == expected
    assert "".join(output.text for output in outputs) == engine.tokenizer.decode(expected)


def test_second_turn_reuses_the_first(engine):
    sampling = SamplingParams(temperature=0, max_tokens=24)
    first = [{"role": "user", "content": "Write a sentence about the sea."}]
    answer = "".join(output.text for output in engine.generate(first, sampling))
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "And one about hills."}]
    reused = list(engine.generate(second, sampling))
    assert reused[-1].usage.cached_tokens >= len(engine.encode(first))
    list(engine.generate("Something else entirely", SamplingParams(temperature=0, max_tokens=1)))
    fresh = list(engine.generate(second, sampling))
    assert [output.token_id for output in fresh] == [output.token_id for output in reused]
