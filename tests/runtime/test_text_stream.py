import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models
from toy_library import VOCAB
from toy_tokenizer import write_tokenizer

from runtime.text_stream import StopStrings, StreamingDetokenizer
from runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer(folder)


def stream(decode, ids):
    detokenizer = StreamingDetokenizer(decode)
    return [detokenizer.add(token_id) for token_id in ids] + [detokenizer.finish()]


@given(text=st.text())
def test_deltas_of_a_text_are_whole_characters_and_join_to_it(tokenizer, text):
    deltas = stream(tokenizer.decode, tokenizer.encode(text))
    assert "".join(deltas) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in delta for delta in deltas)


@given(ids=st.lists(st.integers(0, VOCAB - 1)))
def test_deltas_of_any_ids_join_to_their_decoding(tokenizer, ids):
    # Random ids are mostly broken UTF-8, and special tokens have no text.
    assert "".join(stream(tokenizer.decode, ids)) == tokenizer.decode(ids)


def test_text_is_released_as_soon_as_it_is_certain(tokenizer):
    ids = tokenizer.encode("a😀b")
    assert len(ids) == 6
    assert stream(tokenizer.decode, ids) == ["a", "", "", "", "😀", "b", ""]
    assert stream(tokenizer.decode, ids[:3]) == ["a", "", "", "\ufffd"]


_PIECES = ["▁the", "▁", "fox", "▁fox", "<0xE6>", "<0x97>", "<0xA5>"]


@given(words=st.lists(st.sampled_from([*([piece] for piece in _PIECES[:4]), _PIECES[4:]])))
def test_decoder_that_treats_the_first_token_differently(words):
    # As in Llama 2 and Mistral: "▁" is a space, but not at the beginning; unknown characters are spelt in byte tokens.
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(_PIECES)}, []))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    ids = [_PIECES.index(piece) for word in words for piece in word]
    assert "".join(stream(tokenizer.decode, ids)) == tokenizer.decode(ids)


@given(
    text=st.text("ab", max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 12)),
)
def test_stop_strings_cut_at_the_first_and_hold_back_no_more_than_needed(text, stop, cuts):
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = StopStrings(stop)
    shown, seen = "", ""
    for start, end in zip(bounds, bounds[1:]):
        shown += stream.add(text[start:end])
        seen += text[start:end]
        if stream.found:
            break
        # What is held back is the beginning of a stop string.
        held = seen[len(shown) :]
        assert seen.startswith(shown) and (not held or any(word.startswith(held) for word in stop))
    places = [place for word in stop if (place := seen.find(word)) >= 0]
    assert stream.found == bool(places)
    assert shown + stream.finish() == (seen[: min(places)] if places else text)
