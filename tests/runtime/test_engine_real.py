"""SmolLM2-135M-Instruct, compiled in float32, against Hugging Face transformers on the same GGUF file."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    "story": "Once upon a time, in a small village by the sea,",
    "recipe": [{"role": "user", "content": "How do I cook rice?"}],
    "long": [{"role": "user", "content": _ledger(110) + "\n\nList what each person bought in the first ten entries."}],
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    dist = tmp_path_factory.mktemp("dist")
    command = [
        "compile.py",
        "--model",
        GGUF,
        "--weights",
        GGUF,
        "--quantization",
        "q0f32",
        "--decode",
        "full",
        "-o",
        dist,
    ]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return Engine(next(dist.glob("*-q0f32-MLC")))


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_text_is_that_of_hugging_face(engine, smollm2_hf, name):
    prompt = engine.encode(PROMPTS[name])
    assert (len(prompt) > 2000) == (name == "long")
    outputs = list(engine.generate(PROMPTS[name], SamplingParams(temperature=0, max_tokens=NUM_TOKENS)))
    answer = [output.token_id for output in outputs]
    # One prompt has a short answer, so that its end is compared too.
    assert (answer[-1] in engine.stop_token_ids) if name == "chat" else (len(answer) == NUM_TOKENS)
    # One pass over prompt and answer predicts each token of the answer from those before it. If all of them are the
    # same, greedy decoding would have found the same answer, one token at a time.
    with torch.no_grad():
        logits = smollm2_hf(torch.tensor([prompt + answer]), logits_to_keep=len(answer) + 1).logits[0, :-1]
    assert answer == logits.argmax(-1).tolist()
    assert "".join(output.text for output in outputs) == engine.tokenizer.decode(answer)


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
