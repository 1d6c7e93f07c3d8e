"""SentencePiece vocabularies, from GGUF and tokenizer.model, against a plain implementation of SentencePiece's rule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_bpe import PlainSentencePiece
from sentencepiece_files import ALPHABET, CORPUS, PIECES, SCORES, TYPES, field, sentencepiece_model
from tiny_gguf import write_gguf

from relax_models.gguf_file import GGUFFile
from relax_models.gguf_tokenizer import gguf_tokenizer
from relax_models.sentencepiece_bpe import SentencePieceVocabulary, build_sentencepiece_bpe, read_sentencepiece_model
from runtime.errors import UserError

TEXT = st.text(st.sampled_from([*ALPHABET, "\u2581", "ß", "😀", "\x00"]), max_size=40) | st.lists(
    st.sampled_from(["the", " ", "  ", "an", "ana", "公园", "今天", "ther"]), max_size=15
).map("".join)


@pytest.mark.parametrize("add_prefix_space", [True, False])
@pytest.mark.parametrize("remove_extra_spaces", [True, False])
def test_encodes_as_sentencepiece_does(add_prefix_space, remove_extra_spaces):
    options = (add_prefix_space, remove_extra_spaces)
    tokenizer = build_sentencepiece_bpe(SentencePieceVocabulary(PIECES, SCORES, TYPES, *options))
    oracle = PlainSentencePiece(PIECES, SCORES, TYPES, *options)

    @settings(max_examples=500, deadline=None)
    @given(TEXT)
    def check(text):
        assert tokenizer.encode(text).ids == oracle.encode(text)
        if not remove_extra_spaces:
            assert tokenizer.decode(tokenizer.encode(text).ids) == text.replace("\u2581", " ")

    check()


def test_order_of_scores_not_of_ids():
    pieces, scores = ["<unk>", "a", "b", "c", "ab", "bc"], [0.0, -9.0, -9.0, -9.0, -2.0, -1.0]
    tokenizer = build_sentencepiece_bpe(SentencePieceVocabulary(pieces, scores, [2, 1, 1, 1, 1, 1], False))
    assert tokenizer.encode("abc").tokens == ["a", "bc"]


def test_special_pieces():
    tokenizer = build_sentencepiece_bpe(SentencePieceVocabulary(PIECES, SCORES, TYPES))
    unused9 = len(PIECES) - 1
    ids = tokenizer.encode("<s>the[unused9]the</s>").ids
    # A text that follows a special token gets the prefix space again, as in transformers and llama.cpp.
    the = [tokenizer.token_to_id("\u2581the")]
    assert ids == [1, *the, unused9, *the, 2]
    assert tokenizer.decode(ids) == "the[unused9] the"  # control pieces are skipped, user-defined ones are text


def gguf_file(path, **keys):
    arrays = {"tokenizer.ggml.tokens": PIECES, "tokenizer.ggml.token_type": TYPES, "tokenizer.ggml.scores": SCORES}
    arrays |= keys.pop("arrays", {})
    return GGUFFile(write_gguf(path, {}, arrays=arrays, tokenizer__ggml__model="llama", **keys))


def test_from_gguf(tmp_path):
    oracle = PlainSentencePiece(PIECES, SCORES, TYPES)
    model = gguf_tokenizer(gguf_file(tmp_path / "m.gguf", tokenizer__ggml__bos_token_id=1))
    assert model.config["add_bos_token"] and model.config["bos_token"] == "<s>"
    for text in CORPUS:
        assert model.tokenizer.encode(text).ids == [1, *oracle.encode(text)]
    keys = {"tokenizer__ggml__add_bos_token": False, "tokenizer__ggml__add_space_prefix": False}
    model = gguf_tokenizer(gguf_file(tmp_path / "m.gguf", tokenizer__ggml__bos_token_id=1, **keys))
    oracle = PlainSentencePiece(PIECES, SCORES, TYPES, add_prefix_space=False)
    for text in CORPUS:
        assert model.tokenizer.encode(text).ids == oracle.encode(text)
    for arrays in ({"tokenizer.ggml.scores": [0.0]}, {"tokenizer.ggml.precompiled_charsmap": [1, 2]}):
        with pytest.raises(UserError, match="has a SentencePiece tokenizer that is no plain BPE"):
            gguf_tokenizer(gguf_file(tmp_path / "m.gguf", arrays=arrays))


def test_reads_tokenizer_model(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    found = read_sentencepiece_model(path)
    assert (list(found.pieces), list(found.scores), list(found.types)) == (PIECES, SCORES, TYPES)
    assert (found.add_prefix_space, found.remove_extra_spaces) == (True, True)  # the defaults of the format
    path.write_bytes(sentencepiece_model(normalizer=field(3, 0) + field(4, 0)))
    found = read_sentencepiece_model(path)
    assert (found.add_prefix_space, found.remove_extra_spaces) == (False, False)


def test_tokenizer_model_with_faults(tmp_path):
    path = tmp_path / "tokenizer.model"
    for content in (sentencepiece_model(model_type=1), sentencepiece_model(normalizer=field(2, b"map"))):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match="tokenizer.model is not a plain BPE vocabulary; load the model's tokenizer"
        ):
            read_sentencepiece_model(path)
    for content in (sentencepiece_model()[:-500], b"\xff" * 100, b"{}", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="tokenizer.model is not a"):
            read_sentencepiece_model(path)
