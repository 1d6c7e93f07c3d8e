"""The tokenizer of a GGUF file, rebuilt from its metadata."""

import logging
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from relax_models.byte_level_bpe import PRE_TOKENIZERS, build_byte_level_bpe
from relax_models.gguf_file import GGUFFile
from relax_models.sentencepiece_bpe import (
    CONTROL,
    UNUSED,
    USER_DEFINED,
    SentencePieceVocabulary,
    build_sentencepiece_bpe,
)
from runtime.errors import UserError

_LOG = logging.getLogger(__name__)
_REMEDY = "give the model's Hugging Face folder, which has tokenizer.json, instead of the GGUF file"
_SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


@dataclass(frozen=True)
class ModelTokenizer:
    """A tokenizer and the content of its tokenizer_config.json."""

    tokenizer: Tokenizer
    config: dict[str, Any]


def gguf_tokenizer(file: GGUFFile) -> ModelTokenizer:
    """The tokenizer that `file` describes, which encodes as the model's published one does.

    Tokens marked "control" become special tokens, "user defined" ones added tokens that decoding keeps; tokens
    marked "unused" only pad the table of embeddings and are left out. UserError for an unknown kind of tokenizer.
    """
    metadata = file.metadata
    model = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens or model not in ("gpt2", "llama"):
        raise UserError(f"{file.path} has a tokenizer of kind {model!r}, which cannot be rebuilt; {_REMEDY}.")
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"{file.path} is corrupt: {len(tokens)} tokens have {len(types)} types; {_REMEDY}.")
    if model == "gpt2":
        tokenizer, add_bos_default = _byte_level(file, tokens, types)
    else:
        tokenizer, add_bos_default = _sentencepiece(file, tokens, types), True
    config = _tokenizer_config(file, tokens, add_bos_default)
    if config["add_bos_token"]:
        bos = config["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return ModelTokenizer(tokenizer, config)


def _byte_level(file: GGUFFile, tokens: list[str], types: list[int]) -> tuple[Tokenizer, bool]:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise UserError(f"{file.path} uses the pre-tokenizer {name!r}, which is not known here; {_REMEDY}.")
    if name == "default":
        _LOG.warning("%s does not say how its tokenizer cuts text; llama.cpp's default rule is used.", file.path)
    pre = PRE_TOKENIZERS[name]
    used = len(tokens)
    while used and types[used - 1] == UNUSED:
        used -= 1
    try:
        tokenizer = build_byte_level_bpe(tokens[:used], file.metadata.get("tokenizer.ggml.merges") or [], pre)
    except ValueError as error:
        raise UserError(f"{file.path} has a corrupt vocabulary: {error}; {_REMEDY}.") from None
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer, pre.add_bos


def _sentencepiece(file: GGUFFile, tokens: list[str], types: list[int]) -> Tokenizer:
    metadata = file.metadata
    scores = metadata.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens) or metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raise UserError(f"{file.path} has a SentencePiece tokenizer that is no plain BPE; {_REMEDY}.")
    return build_sentencepiece_bpe(
        SentencePieceVocabulary(
            tokens,
            scores,
            types,
            metadata.get("tokenizer.ggml.add_space_prefix", True),
            metadata.get("tokenizer.ggml.remove_extra_whitespaces", False),
        )
    )


def _tokenizer_config(file: GGUFFile, tokens: list[str], add_bos_default: bool) -> dict[str, Any]:
    metadata = file.metadata
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, gguf_role in _SPECIAL_TOKENS.items():
        index = metadata.get(f"tokenizer.ggml.{gguf_role}_token_id")
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise UserError(f"{file.path} is corrupt: its {role} token is number {index} of {len(tokens)}; {_REMEDY}.")
        config[f"{role}_token"] = tokens[index]
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos_default)
    config["add_bos_token"] = bool(add_bos and "bos_token" in config)
    context_length = metadata.get(f"{file.architecture}.context_length")
    if context_length:
        config["model_max_length"] = context_length
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config
