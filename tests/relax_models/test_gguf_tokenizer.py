"""Tokenizers rebuilt from GGUF files encode as the models' own do.

Three oracles: transformers' reading of the same file; a plain implementation of llama.cpp's rules; ids published for
SmolLM2. transformers 5 misses two things, which are put right here before comparing: it does not know the pre-tokenizer
"smollm" and so keeps digits together, where the published tokenizer.json isolates them; and it leaves out the
normalization to NFC that Qwen2's published tokenizer.json has.
"""

import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_bpe import PlainBPE
from tiny_gguf import write_gguf
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from relax_models.gguf_file import GGUFFile
from relax_models.gguf_tokenizer import gguf_tokenizer
from runtime.errors import UserError

TEXTS = {
    "empty": "",
    "prose": "It's the author's 2nd novel; they'll say \"we've READ it\", won't they? I'M sure… naïve façade — £5.",
    "code": 'def f(x: int) -> str:\n\treturn f"{x!r:>10}"  #\n\n\nfor i in range(100_000):\n        x[i] += 1e-9\r\n',
    "spaces": "a b  c   d    e \t f\n\n\ng \n h\t\t\ti\u00a0j\u3000k   ",
    "only spaces": "      ",
    "leading": "\n\n   \n text\n",
    "digits": "1 12 123 1234567890 3.14159 1,000,000 ٣٤٥ ²³ ½ Ⅷ 0xFF",
    "cjk": "今天天气很好，我们去公园吧。日本語のテキスト、カタカナー。한국어 텍스트입니다!",
    "arabic": "السلام عليكم ورحمة الله وبركاته ١٢٣",
    "hindi": "नमस्ते दुनिया, यह एक परीक्षण है।",
    "cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🇺🇸 ❤️ 🤷🏾‍♀️ 😀😀😀 ☃︎",
    "combining": "e\u0301 é A\u030a Å o\u0302\u0323 ộ \u1100\u1161\u11a8 각 q\u0307\u0323 ﬁ Å",
    "special": "<|im_start|>user\nhi<|im_end|><|endoftext|>x<|im_end|> <|im_start|>",
    "almost special": "<|im_start |> <|im_end| > <im_end> <|im_end",
    "control": "a\x00b\x01\x04\x06\x7f\x85\u2028\u2029\ufeff\ufffd",
    "rare": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 ㏒ ꙮ",
    "long word": "a" * 300 + "Ж" * 100,
}
# Assigned in Unicode 14, which Python 3.11 knows; newer characters may fall in other classes in the two regex engines.
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=60)
LIKELY_TEXT = st.lists(
    st.sampled_from(
        [
            "the",
            "The",
            " ",
            "  ",
            "\n",
            "\t",
            "'s",
            "'LL",
            "7",
            "42",
            "é",
            "e\u0301",
            "日本",
            "!?",
            "->",
            "<|im_end|>",
            "_x",
            "\r\n",
        ]
    ),
    max_size=25,
).map("".join)


def with_transformers(path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    pre = GGUFFile(path).metadata["tokenizer.ggml.pre"]
    if pre == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    return tokenizer


def plain(path):
    metadata = GGUFFile(path).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    pre = metadata["tokenizer.ggml.pre"]
    special = [token for token, kind in zip(tokens, types) if kind in (3, 4)]
    return PlainBPE(tokens, metadata["tokenizer.ggml.merges"], pre, special, nfc=pre == "qwen2")


@functools.cache
def rebuilt(path):
    return gguf_tokenizer(GGUFFile(path)).tokenizer


def check_texts(path):
    tokenizer, theirs, oracle = rebuilt(path), with_transformers(path), plain(path)
    for name, text in TEXTS.items():
        ids = tokenizer.encode(text).ids
        assert ids == theirs(text).input_ids, name
        assert ids == oracle.encode(text), name
        kept = tokenizer.decode(ids, skip_special_tokens=False)
        assert kept == theirs.decode(ids), name


def test_smollm2_on_varied_text(smollm2_gguf):
    check_texts(smollm2_gguf)


def test_qwen_on_varied_text(qwen_coder_gguf):
    check_texts(qwen_coder_gguf)


def test_smollm2_on_any_text(smollm2_gguf):
    oracle = plain(smollm2_gguf)

    @settings(max_examples=200, deadline=None)
    @given(ANY_TEXT | LIKELY_TEXT)
    def check(text):
        assert rebuilt(smollm2_gguf).encode(text).ids == oracle.encode(text)

    check()


def test_qwen_on_any_text(qwen_coder_gguf):
    oracle = plain(qwen_coder_gguf)

    @settings(max_examples=200, deadline=None)
    @given(ANY_TEXT | LIKELY_TEXT)
    def check(text):
        assert rebuilt(qwen_coder_gguf).encode(text).ids == oracle.encode(text)

    check()


def test_smollm2_gives_the_ids_that_others_published(smollm2_gguf):
    # From public code that checks its own SmolLM2 tokenizer against the model's published tokenizer.json.
    published = {
        "Hello, we can use": [19556, 28, 392, 416, 722],
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
        "  multiple   spaces": [216, 2701, 256, 5600],
    }
    for text, ids in published.items():
        assert rebuilt(smollm2_gguf).encode(text).ids == ids


def test_configuration_of_smollm2(smollm2_gguf):
    file = GGUFFile(smollm2_gguf)
    model = gguf_tokenizer(file)
    assert model.config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "add_bos_token": False,
        "model_max_length": 8192,
        "chat_template": file.metadata["tokenizer.chat_template"],
    }
    assert model.tokenizer.get_vocab_size() == 49152
    assert model.tokenizer.decode([1, 4093, 198, 26843, 2]) == "user\nHi"


def test_padding_of_the_table_is_no_vocabulary(qwen_coder_gguf):
    tokenizer = rebuilt(qwen_coder_gguf)
    assert tokenizer.get_vocab_size() == 151665  # as the published tokenizer.json
    assert tokenizer.token_to_id("[PAD151930]") is None
    assert tokenizer.decode(tokenizer.encode("<tool_call>x<|im_end|>").ids) == "<tool_call>x"


# A vocabulary of all bytes and a few words, for what the two real files do not show.
WORDS = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "Ġ 1", "Ġ Ġ", "! !", "l l", "' s"]


def byte_level_gguf(path, types=None, extra=(), **keys):
    tokens = [*pre_tokenizers.ByteLevel.alphabet()]
    tokens.sort()
    tokens += [merge.replace(" ", "") for merge in WORDS] + list(extra)
    arrays = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types or [1] * (len(tokens) - len(extra)) + [3] * len(extra),
        "tokenizer.ggml.merges": keys.pop("merges", WORDS),
    }
    return GGUFFile(write_gguf(path, {}, arrays=arrays, tokenizer__ggml__model="gpt2", **keys)), tokens


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe", "default"])
def test_pre_tokenizers(tmp_path, pre):
    file, tokens = byte_level_gguf(tmp_path / "m.gguf", extra=["<s>", "Ġtheatre"], tokenizer__ggml__pre=pre)
    model = gguf_tokenizer(file)
    # "Ġtheatre" has no merges of its own: only Llama 3, which takes a piece that is a token whole, gets there.
    oracle = PlainBPE(tokens, WORDS, pre, ["<s>"], nfc=pre == "qwen2", ignore_merges=pre == "llama-bpe")
    for text in [*TEXTS.values(), "the the123 1234 12,345!! it's ALL'S the theatre", "$12+<=>34^5~|6 --- 0123456789"]:
        assert model.tokenizer.encode(text).ids == oracle.encode(text), text


def test_begin_of_text(tmp_path):
    def ids(**keys):
        file, tokens = byte_level_gguf(tmp_path / "m.gguf", extra=["<s>"], **keys)
        bos = tokens.index("<s>")
        model = gguf_tokenizer(file)
        assert model.config["add_bos_token"] == (model.tokenizer.encode("a").ids[0] == bos)
        assert bos not in model.tokenizer.encode("a", add_special_tokens=False).ids
        return model.config["add_bos_token"]

    bos = {"tokenizer__ggml__bos_token_id": 256 + len(WORDS)}
    assert ids(tokenizer__ggml__pre="llama-bpe", **bos)  # llama.cpp's default for Llama 3
    assert not ids(tokenizer__ggml__pre="llama-bpe", tokenizer__ggml__add_bos_token=False, **bos)
    assert not ids(tokenizer__ggml__pre="gpt-2", **bos)
    assert ids(tokenizer__ggml__pre="gpt-2", tokenizer__ggml__add_bos_token=True, **bos)
    assert not ids(tokenizer__ggml__pre="gpt-2", tokenizer__ggml__add_bos_token=True)


def test_a_file_without_a_pre_tokenizer_is_warned_about(tmp_path, caplog):
    gguf_tokenizer(byte_level_gguf(tmp_path / "m.gguf")[0])
    assert "does not say how its tokenizer cuts text" in caplog.text


def test_saved_tokenizer_is_the_same(tmp_path, smollm2_gguf):
    rebuilt(smollm2_gguf).save(str(tmp_path / "tokenizer.json"))
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS.values():
        assert saved.encode(text).ids == rebuilt(smollm2_gguf).encode(text).ids
    assert json.loads((tmp_path / "tokenizer.json").read_text())["normalizer"] is None


def test_unusable_tokenizers(tmp_path):
    path = tmp_path / "m.gguf"
    wrong = [
        (
            {"tokenizer__ggml__pre": "viking"},
            "uses the pre-tokenizer 'viking', which is not known here; give the model's",
        ),
        ({"merges": ["a b"]}, "corrupt vocabulary: the merge 'a b' does not join two tokens into a third"),
        ({"merges": ["ab"]}, "corrupt vocabulary: the merge 'ab'"),
        ({"tokenizer__ggml__eos_token_id": 9999}, "its eos token is number 9999 of 266"),
        ({"types": [1]}, "266 tokens have 1 types"),
    ]
    for keys, message in wrong:
        with pytest.raises(UserError, match=message):
            gguf_tokenizer(byte_level_gguf(path, **keys)[0])
    for keys in ({}, {"tokenizer__ggml__model": "bert"}):
        with pytest.raises(UserError, match="has a tokenizer of kind .*, which cannot be rebuilt"):
            gguf_tokenizer(GGUFFile(write_gguf(path, {"w": np.ones(3, np.float32)}, **keys)))
