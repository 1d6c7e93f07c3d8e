"""Byte-level BPE tokenizers rebuilt from a vocabulary, merges and the name of a pre-tokenizer.

`tokenizer.ggml.pre` of a GGUF file names how the text is cut before the merges. The table below gives, for each name,
the form in the models' published tokenizer.json; llama.cpp (src/llama-vocab.cpp) holds regular expressions that cut
alike, apart from the normalization to NFC, which it leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# llama.cpp's rule for a file that names no known pre-tokenizer; no published tokenizer.json has this form.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True)
class PreTokenizer:
    """How a family cuts its text.

    splits : regular expressions, applied one after the other; digits : isolate every digit first; gpt2_regex : GPT-2's
    own expression last; nfc : normalize to NFC before; ignore_merges : a piece that is a token is not merged up;
    add_bos : whether text begins with the BOS token where the file does not say.
    """

    splits: tuple[str, ...] = ()
    digits: bool = False
    gpt2_regex: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        steps = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in self.splits]
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2_regex))
        return pre_tokenizers.Sequence(steps)


_LLAMA3_PRE = PreTokenizer(splits=(_LLAMA3,), ignore_merges=True, add_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(gpt2_regex=True),
    "smollm": PreTokenizer(digits=True, gpt2_regex=True),
    "qwen2": PreTokenizer(splits=(_QWEN2,), nfc=True),
    "llama-bpe": _LLAMA3_PRE,
    "llama3": _LLAMA3_PRE,
    "llama-v3": _LLAMA3_PRE,
    "tekken": PreTokenizer(splits=(_TEKKEN,), ignore_merges=True, add_bos=True),
    "default": PreTokenizer(splits=_DEFAULT),
}


def build_byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], pre: PreTokenizer) -> Tokenizer:
    """A tokenizer whose token i is `tokens[i]`, spelled in GPT-2's byte alphabet; each merge is "left right".

    Raises ValueError for a merge that names a token the vocabulary lacks.
    """
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = []
    for merge in merges:
        position = merge.find(" ", 1)
        left, right = merge[:position], merge[position + 1 :]
        if position < 0 or left not in vocab or right not in vocab or left + right not in vocab:
            raise ValueError(f"the merge {merge!r} does not join two tokens into a third")
        pairs.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
