"""The tokenizer files of a model folder, from Hugging Face folders and GGUF files."""

import json

import pytest
from plain_bpe import PlainSentencePiece
from sentencepiece_files import CORPUS, PIECES, SCORES, TYPES, field, sentencepiece_model
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from relax_models.gguf_file import GGUFFile
from relax_models.tokenizer_files import active_vocab_size, tokenizer_facts, write_tokenizer
from runtime.errors import UserError

TEMPLATE = "{{ messages[0].content }}"


@pytest.fixture
def hf_folder(tmp_path, smollm2_gguf):
    """A Hugging Face folder with SmolLM2's tokenizer."""
    folder = tmp_path / "hf"
    folder.mkdir()
    write_tokenizer(GGUFFile(smollm2_gguf), folder)
    return folder


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_from_gguf(smollm2_gguf, out):
    facts = write_tokenizer(GGUFFile(smollm2_gguf), out)
    assert sorted(path.name for path in out.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert facts.info == {
        "token_postproc_method": "byte_level",
        "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }
    assert facts.vocab_size == 49152 and not facts.add_bos_token
    assert (facts.token_id("bos"), facts.token_id("eos"), facts.token_id("sep")) == (1, 2, None)
    assert facts.special_ids["<|endoftext|>"] == 0
    assert facts.chat_template.startswith("{% for message in messages %}")
    # transformers takes the folder for a model's own.
    theirs = AutoTokenizer.from_pretrained(out)
    text = "It's 123 <|im_start|> é 今天"
    assert theirs(text).input_ids == Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids
    messages = [{"role": "user", "content": "Hi"}]
    assert "named SmolLM" in theirs.apply_chat_template(messages, tokenize=False)


def test_files_of_a_folder_are_copied_as_they_are(hf_folder, out):
    (hf_folder / "vocab.json").write_text("{}")
    facts = write_tokenizer(hf_folder, out)
    names = ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    for name in names:
        assert (out / name).read_bytes() == (hf_folder / name).read_bytes()
    assert facts == tokenizer_facts(hf_folder)


def test_chat_template_in_its_own_file(hf_folder, out):
    (hf_folder / "chat_template.jinja").write_text(TEMPLATE)
    assert write_tokenizer(hf_folder, out).chat_template == TEMPLATE
    before, after = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in (hf_folder, out))
    assert after == before | {"chat_template": TEMPLATE}


def test_shapes_of_tokenizer_config(hf_folder):
    path = hf_folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(
            {
                "eos_token": {"content": "<|im_end|>", "lstrip": False},
                "bos_token": None,
                "add_bos_token": True,
                "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}],
            }
        )
    )
    facts = tokenizer_facts(hf_folder)
    assert facts.special_tokens == {"eos_token": "<|im_end|>"} and facts.token_id("eos") == 2
    assert facts.chat_template == TEMPLATE
    path.unlink()
    facts = tokenizer_facts(hf_folder)
    assert facts.special_tokens == {} and facts.chat_template is None


def test_folders_with_faults(hf_folder, out, tmp_path):
    with pytest.raises(UserError, match="out has no tokenizer.json; save one there with transformers"):
        write_tokenizer(out, tmp_path)
    for content in ("{", "[]"):
        (hf_folder / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match="tokenizer_config.json (is not valid JSON|does not hold a JSON object)"):
            write_tokenizer(hf_folder, out)
    for content in ("{", "{}", "[]"):
        (hf_folder / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match="tokenizer.json is not a tokenizer.json"):
            write_tokenizer(hf_folder, out)


@pytest.fixture
def sentencepiece_folder(tmp_path):
    """Laid out as openPangu-Embedded's: special tokens are ordinary pieces that tokenizer_config.json names."""
    folder = tmp_path / "pangu"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(normalizer=field(4, 0)))
    config = {
        "add_bos_token": True,
        "added_tokens_decoder": {
            str(PIECES.index(piece)): {
                "content": piece,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for piece in ("<unk>", "<s>", "</s>", "[unused9]")
        },
        "auto_map": {"AutoTokenizer": ["tokenization_openpangu.PanguTokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "[unused9]",
        "tokenizer_class": "PanguTokenizer",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_sentencepiece_folder(sentencepiece_folder, out):
    facts = write_tokenizer(sentencepiece_folder, out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    oracle = PlainSentencePiece(PIECES, SCORES, TYPES)
    for text in CORPUS:
        assert tokenizer.encode(text).ids == [1, *oracle.encode(text)]
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    unused9 = PIECES.index("[unused9]")
    ids = tokenizer.encode("the[unused9]the").ids
    assert ids == [1, *oracle.encode("the"), unused9, *oracle.encode("the")]
    assert tokenizer.decode(ids) == "the the"  # a special token here, unlike in the bare vocabulary
    assert facts.add_bos_token and facts.token_id("eos") == unused9 and facts.chat_template == TEMPLATE
    assert facts.info == {
        "token_postproc_method": "byte_fallback",
        "prepend_space_in_encode": True,
        "strip_space_in_decode": True,
    }
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in config
    assert AutoTokenizer.from_pretrained(out)("the[unused9]the").input_ids == ids


def test_ids_of_a_tokenizer(smollm2_gguf, hf_folder, sentencepiece_folder, tmp_path):
    assert active_vocab_size(smollm2_gguf) == active_vocab_size(hf_folder) == 49152
    assert active_vocab_size(sentencepiece_folder) == len(PIECES)
    path = hf_folder / "tokenizer.json"
    description = json.loads(path.read_text())
    del description["model"]["vocab"]["\u0120the"]  # an id in the middle that no token has
    description["model"]["merges"] = []
    path.write_text(json.dumps(description))
    assert active_vocab_size(hf_folder) == 49152
    path.write_text("{}")
    assert active_vocab_size(hf_folder) is active_vocab_size(tmp_path) is active_vocab_size(tmp_path / "qwen") is None


def test_sentencepiece_files_that_contradict_each_other(sentencepiece_folder, out):
    path = sentencepiece_folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"1"', '"3"'))
    with pytest.raises(UserError, match="gives the token '<s>' the id 3, but tokenizer.model gives it 1"):
        write_tokenizer(sentencepiece_folder, out)
