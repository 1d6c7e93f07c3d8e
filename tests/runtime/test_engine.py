"""The engine on the toy model, whose next token depends on the last token and its position (toy_library.py)."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_library import CHUNK, CONTEXT, VOCAB, toy_logits, toy_weights

from runtime import library
from runtime.engine import Engine
from runtime.errors import UserError
from runtime.library import ModelLibrary
from runtime.policy import make_policy
from runtime.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)
WEIGHTS = toy_weights()
HAS, PARSE = ModelLibrary._has, library.parse_library_metadata


def greedy(prompt, max_tokens=CONTEXT, stop_ids=(0,)):
    """The oracle: ids of the greedy answer, with its end-of-text token."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + max_tokens, CONTEXT) and (len(ids) == len(prompt) or ids[-1] not in stop_ids):
        ids.append(int(toy_logits(WEIGHTS, ids).argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def engine(toy_dist):
    return Engine(toy_dist / "Toy-q0f32-MLC")


@pytest.fixture
def steps(engine, monkeypatch):
    """The numbers of tokens of the steps that an engine runs."""
    lengths = []
    kv = engine._sequence._kv
    begin = kv.begin_forward
    monkeypatch.setattr(kv, "begin_forward", lambda ids, lens: (lengths.extend(lens), begin(ids, lens)))
    return lengths


def run(engine, prompt, sampling=GREEDY, **kwargs):
    return list(engine.generate(prompt, sampling, **kwargs))


def ids_of(outputs):
    return [output.token_id for output in outputs]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.integers(0, VOCAB - 1), max_size=CONTEXT - 1), st.integers(1, 20)),
        min_size=1,
        max_size=5,
    )
)
def test_any_sequence_of_prompts_is_answered_as_from_an_empty_cache(engine, prompts):
    previous: list[int] = []
    for keep, new, max_tokens in prompts:
        # Share a beginning with what the last prompt and answer left in the cache.
        prompt = (previous[:keep] + new)[: CONTEXT - 1] or [1]
        outputs = run(engine, prompt, GREEDY.changed(max_tokens=max_tokens))
        assert ids_of(outputs) == greedy(prompt, max_tokens)
        usage = outputs[-1].usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(outputs))
        previous = prompt + ids_of(outputs)
        # The last token of an answer was never an input.
        assert engine._sequence.token_ids == previous[:-1]
        assert engine._sequence._kv.total_sequence_length == len(previous) - 1


def test_prefill_in_chunks_reports_progress(engine, steps):
    progress = []
    prompt = [10 + i for i in range(2 * CHUNK + 3)]
    run(engine, prompt, GREEDY.changed(max_tokens=3), on_prefill=lambda done, total: progress.append((done, total)))
    assert steps == [CHUNK, CHUNK, 3, 1, 1]
    n = len(prompt)
    assert progress == [(0, n), (CHUNK, n), (2 * CHUNK, n), (n, n)]


def test_only_the_new_part_of_a_prompt_is_computed(engine, steps):
    prompt = [50 + i for i in range(CHUNK)]
    first = run(engine, prompt, GREEDY.changed(max_tokens=4))
    steps.clear()
    answer = ids_of(first)
    extended = run(engine, [*prompt, *answer, 9, 8], GREEDY.changed(max_tokens=1))
    assert steps == [3] and extended[-1].usage.cached_tokens == CHUNK + 3  # the last token of the answer, 9 and 8
    steps.clear()
    shorter = run(engine, [*prompt[:5], 7], GREEDY.changed(max_tokens=1))
    assert steps == [1] and shorter[-1].usage.cached_tokens == 5
    steps.clear()
    same = run(engine, [*prompt[:5], 7], GREEDY.changed(max_tokens=1))
    assert steps == [2] and ids_of(same) == ids_of(shorter)  # one token would be taken for a generated one


def test_text_is_the_decoding_of_the_tokens(engine):
    outputs = run(engine, "the quick brown", GREEDY.changed(max_tokens=30))
    assert "".join(output.text for output in outputs) == engine.tokenizer.decode(ids_of(outputs))
    assert ids_of(outputs) == greedy(engine.tokenizer.encode("the quick brown"), 30)


def test_messages_go_through_the_template(engine):
    messages = [{"role": "user", "content": "fox"}]
    prompt = engine.tokenizer.encode("<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n")
    assert engine.encode(messages) == prompt
    assert ids_of(run(engine, messages, GREEDY.changed(max_tokens=5))) == greedy(prompt, 5)


def test_end_of_text_token_ends_the_answer_and_has_no_text(engine):
    answer = greedy([5], 10)
    bias = {0: 1000.0}
    outputs = run(engine, [5], GREEDY.changed(logit_bias=bias))
    assert [(o.token_id, o.text, o.finish_reason) for o in outputs] == [(0, "", "stop")]
    assert ids_of(run(engine, [5], GREEDY.changed(max_tokens=10))) == answer


def test_stop_string(engine):
    full = "".join(output.text for output in run(engine, "the fox", GREEDY.changed(max_tokens=30)))
    stop = full[7:10]
    outputs = run(engine, "the fox", GREEDY.changed(max_tokens=30, stop=(stop, "never")))
    assert "".join(output.text for output in outputs) == full[: full.index(stop)]
    assert outputs[-1].finish_reason == "stop" and len(outputs) < 30


def test_length_limits(engine):
    outputs = run(engine, [5], GREEDY.changed(max_tokens=4))
    assert (len(outputs), outputs[-1].finish_reason) == (4, "length")
    prompt = [7] * (CONTEXT - 3)
    outputs = run(engine, prompt, GREEDY.changed(max_tokens=1000))
    assert (len(outputs), outputs[-1].finish_reason) == (3, "length")
    outputs = run(engine, [*prompt, 7, 7])
    assert (len(outputs), outputs[-1].finish_reason) == (1, "length")
    with pytest.raises(UserError, match=f"the prompt has {CONTEXT} tokens, but the context holds {CONTEXT}"):
        engine.generate([7] * CONTEXT)


def test_config_may_shrink_the_context(toy_copy):
    path = toy_copy / "mlc-chat-config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"context_window_size": 10}))
    engine = Engine(toy_copy)
    with pytest.raises(UserError, match="the prompt has 12 tokens, but the context holds 10"):
        engine.generate([7] * 12)
    assert len(run(engine, [7] * 8)) == 2


def test_padding_of_the_vocabulary_is_never_an_answer(toy_copy):
    path = toy_copy / "mlc-chat-config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"active_vocab_size": 20}))
    ids = ids_of(run(Engine(toy_copy), [7], GREEDY.changed(max_tokens=20)))
    assert ids[0] == toy_logits(WEIGHTS, [7])[:20].argmax() and max(ids) < 20


@pytest.mark.parametrize("prompt", ["", [], [{"role": "user", "content": " \n"}], np.array([], np.int32)])
def test_empty_prompt(engine, prompt):
    with pytest.raises(UserError, match="the prompt is empty"):
        engine.generate(prompt)


def test_token_ids_outside_the_vocabulary(engine):
    for prompt in ([VOCAB], [1, -1]):
        with pytest.raises(UserError, match=f"outside the vocabulary of {VOCAB}"):
            engine.generate(prompt)
    with pytest.raises(UserError, match=f"logit_bias has token id {VOCAB} outside"):
        engine.generate([1], GREEDY.changed(logit_bias={VOCAB: 1.0}))


def test_usage_speeds(engine):
    usage = run(engine, [5] * 20, GREEDY.changed(max_tokens=5))[-1].usage
    assert usage.prefill_tokens_per_s == pytest.approx((20 - usage.cached_tokens) / usage.prefill_seconds)
    assert usage.decode_tokens_per_s == pytest.approx(4 / usage.decode_seconds)
    assert run(engine, [5], GREEDY.changed(max_tokens=1))[-1].usage.decode_tokens_per_s is None


def test_penalties_reach_the_library(engine):
    ids = ids_of(run(engine, [5], GREEDY.changed(max_tokens=20, repetition_penalty=1e6)))
    assert len(set(ids)) == len(ids)


def test_seeded_answers_repeat(engine):
    sampling = SamplingParams(temperature=5.0, top_p=0.9, seed=1, max_tokens=10)
    first = ids_of(run(engine, [5], sampling))
    assert ids_of(run(engine, [5], sampling)) == first != ids_of(run(engine, [5], sampling.changed(seed=2)))


def test_abandoned_answer_keeps_the_cache(engine, steps):
    stream = engine.generate([5, 6, 7], GREEDY)
    answer = [next(stream).token_id for _ in range(3)]
    stream.close()
    steps.clear()
    assert ids_of(run(engine, [5, 6, 7, *answer[:2], 40], GREEDY.changed(max_tokens=6))) == greedy(
        [5, 6, 7, *answer[:2], 40], 6
    )
    assert steps[0] == 1


def test_prefill_stopped_between_chunks_keeps_the_finished_ones(engine, steps):
    def stop_after_one(done, _total):
        if done:
            raise KeyboardInterrupt

    prompt = [100 + i for i in range(3 * CHUNK)]
    with pytest.raises(KeyboardInterrupt):
        run(engine, prompt, on_prefill=stop_after_one)
    steps.clear()
    outputs = run(engine, prompt, GREEDY.changed(max_tokens=2))
    assert steps == [CHUNK, CHUNK, 1] and ids_of(outputs) == greedy(prompt, 2)


def test_step_that_fails_clears_the_cache(engine, monkeypatch):
    def fail(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine._library, "prefill", fail)
        run(engine, [9, 9, 9])
    outputs = run(engine, [9, 9, 9, 9], GREEDY.changed(max_tokens=5))
    assert outputs[-1].usage.cached_tokens == 0 and ids_of(outputs) == greedy([9] * 4, 5)


def test_older_answer_cannot_go_on(engine):
    older = engine.generate([5], GREEDY)
    next(older)
    unstarted = engine.generate([6], GREEDY)
    run(engine, [7], GREEDY.changed(max_tokens=1))
    for stream in (older, unstarted):
        with pytest.raises(RuntimeError, match="has begun another one"):
            next(stream)


def test_two_engines_in_one_process(engine, toy_dist):
    other = Engine(str(toy_dist / "Toy-q0f32-MLC"), str(toy_dist / "libs" / "Toy-q0f32-cpu.so"))
    streams = [e.generate(prompt, GREEDY.changed(max_tokens=8)) for e, prompt in ((engine, [5, 6]), (other, [70]))]
    pairs = list(zip(*streams))
    assert [a.token_id for a, _ in pairs] == greedy([5, 6], 8)
    assert [b.token_id for _, b in pairs] == greedy([70], 8)


def test_folder_without_library(toy_copy):
    (toy_copy.parent / "libs").unlink()
    with pytest.raises(UserError, match="no model library at .*Toy-q0f32-cpu.so"):
        Engine(toy_copy)


def test_policy_of_the_library_and_changes(toy_dist):
    engine = Engine(toy_dist / "Toy-q0f32-MLC", policy="base_budget=4096")
    assert engine.policy == make_policy(overrides="base_budget=4096")
    configured = []
    configure = engine._sequence._kv.configure
    engine._sequence._kv.configure = lambda text: (configured.append(text), configure(text))
    engine.set_policy("decode=full")
    engine.set_policy("decode=snapkv;capacity=512")  # the library can compress, whatever it does now
    assert engine.policy == make_policy(decode="snapkv", overrides="base_budget=4096;capacity=512")
    assert configured[-1] == engine.policy.cache_text()
    for mistake in ("capacity=1", "block_size=16", "budget=1"):
        with pytest.raises(UserError, match=mistake.partition("=")[0]):
            engine.set_policy(mistake)
    assert len(configured) == 2 and engine.policy.capacity == 512
    assert ids_of(run(engine, [5], GREEDY.changed(max_tokens=5))) == greedy([5], 5)


def test_library_without_a_policy(toy_dist, monkeypatch):
    monkeypatch.setattr(ModelLibrary, "_has", lambda self, name: not name.startswith("kv_cache_") and HAS(self, name))
    monkeypatch.setattr(
        library, "parse_library_metadata", lambda *args: PARSE(*args).model_copy(update={"policy": None})
    )
    engine = Engine(toy_dist / "Toy-q0f32-MLC")
    assert engine.policy is None
    with pytest.raises(UserError, match="the model library has no policy to change: compile it"):
        engine.set_policy("capacity=512")
    assert ids_of(run(engine, [5, 6, 7], GREEDY.changed(max_tokens=5))) == greedy([5, 6, 7], 5)
    assert ids_of(run(engine, [5, 8], GREEDY.changed(max_tokens=5))) == greedy([5, 8], 5)


def test_cleared_cache(engine, steps):
    stream = engine.generate([5, 6, 7, 8], GREEDY)
    next(stream)
    assert engine.cache_lengths == (4, 4)
    engine.clear_cache()
    assert engine.cache_lengths == (0, 0)
    with pytest.raises(RuntimeError, match="has begun another one"):
        next(stream)
    steps.clear()
    assert ids_of(run(engine, [5, 6, 7, 8], GREEDY.changed(max_tokens=2))) == greedy([5, 6, 7, 8], 2)
    assert steps == [4, 1]
