"""Sessions of a compiled model: forks, and a conversation that is short of memory."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "relax_models")]

from compiled_model import compile_model
from reference import hf_model, named_weights, tiny

from evaluation.branch import read_prompt
from evaluation.policies import with_settings
from evaluation.session import Session
from runtime.policy import make_policy
from runtime.sequence import CachedSequence

CONFIG = tiny("llama", num_hidden_layers=2, max_position_embeddings=1024)
CAPACITY, SLACK, PAGE = 96, 24, 64
PROMPT = np.random.default_rng(5).integers(0, CONFIG.vocab_size, 350).tolist()
QUESTION = np.random.default_rng(6).integers(0, CONFIG.vocab_size, 50).tolist()
END_OF_TEXT = frozenset({1})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    policy = make_policy("dense", "latent", f"capacity={CAPACITY};slack={SLACK};decode_gap=16")
    weights = named_weights(hf_model(CONFIG, seed=3))
    return compile_model(CONFIG, weights, "q0f32", tmp_path_factory.mktemp("library"), policy=policy)


@pytest.fixture
def session(model):
    tokenizer = SimpleNamespace(decode=lambda ids: "".join(chr(65 + i % 26) for i in ids))
    sizes = {"longest_prompt": 1024, "vocab_size": CONFIG.vocab_size, "stop_token_ids": END_OF_TEXT}
    return Session(model.library, model.params, tokenizer, **sizes)


def answer(sequence: CachedSequence, logits, count: int) -> tuple[list[int], np.ndarray]:
    """The oracle of a greedy answer without an end, by the runtime's own sequence; also the logits after it."""
    ids = []
    for _ in range(count):
        values = np.from_dlpack(logits).reshape(-1).copy()
        values[list(END_OF_TEXT)] = -np.inf
        ids.append(int(values.argmax()))
        logits = sequence.decode(ids[-1])
    return ids, np.from_dlpack(logits).reshape(-1).copy()


@pytest.mark.parametrize("when", ["pressure", "always"])
def test_a_second_turn_that_has_to_make_room(model, session, when) -> None:
    policy = with_settings("p", model.library, f"compress_when={when};max_total_seq_length=first_turn")
    memory = policy.memory_for(len(PROMPT), PAGE)
    assert memory == 6 * PAGE  # 350 + 64 tokens need a seventh page
    free = session._kv.num_available_pages
    with read_prompt(session, PROMPT, policy, memory) as prompt:
        with prompt.fork() as side:
            side.log_likelihood(QUESTION)
        assert prompt.kept == 1.0
        with prompt.conversation(policy) as branch:
            branch.answer(0, min_new_tokens=PAGE)
            branch.extend(QUESTION)
            kept, logits = branch.kept, branch.logits
        with branch.fork() as side:
            side.log_likelihood(QUESTION)
    assert session._kv.num_available_pages == free
    # The same conversation in the runtime's cache of that size, which has two pages beside what it is asked for.
    sequence = CachedSequence(model.library, model.params, 1024, memory - 2 * PAGE, policy.policy)
    answer(sequence, sequence.prefill(PROMPT), PAGE)
    expected = np.from_dlpack(sequence.prefill(QUESTION)).reshape(-1)
    np.testing.assert_allclose(logits, expected[: CONFIG.vocab_size], rtol=0, atol=1e-4 * np.abs(expected).max())
    held = [
        len(sequence.held_positions(layer, head)) for layer in range(2) for head in range(CONFIG.num_key_value_heads)
    ]
    assert kept == pytest.approx(np.mean(held) / (350 + PAGE + 50)) and kept < 1


def test_an_answer_goes_on_beyond_its_end(model, session) -> None:
    policy = with_settings("p", model.library, "decode=full")
    with read_prompt(session, PROMPT, policy) as prompt, prompt.conversation(policy) as branch:
        first = branch.answer(5, min_new_tokens=20)
        assert branch.length == 370 and branch.kept == 1.0 and prompt.length == 350
        logits = branch.logits
    sequence = CachedSequence(model.library, model.params, 1024)
    sequence.set_policy(policy.policy)
    ids, expected = answer(sequence, sequence.prefill(PROMPT), 20)
    assert first.token_ids == ids[:5] and len(first.text) == 5
    np.testing.assert_array_equal(logits, expected)


def test_compression_in_a_fork_leaves_the_prompt_whole(model, session) -> None:
    policy = with_settings("p", model.library)
    with read_prompt(session, PROMPT, policy) as prompt:
        with prompt.conversation(policy) as branch:
            branch.answer(0, min_new_tokens=18)
            # Compressed before the 17th token is appended, then two more.
            assert branch.kept == pytest.approx((CAPACITY + 2) / 368)
        assert prompt.kept == 1.0
