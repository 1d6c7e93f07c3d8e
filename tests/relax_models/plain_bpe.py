"""Byte-level BPE and SentencePiece BPE written out plainly, as oracles for the tokenizers library."""

import unicodedata

import regex

# src/llama-vocab.cpp of llama.cpp: the expressions of a pre-tokenizer, applied one after the other; text between
# matches is a piece of its own.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_QWEN2 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_CPP_EXPRESSIONS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "qwen2": [_QWEN2],
    "llama-bpe": [_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}


def byte_alphabet():
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_ALPHABET = byte_alphabet()


def split(text, pattern):
    pieces, end = [], 0
    for match in regex.finditer(pattern, text):
        pieces += [text[end : match.start()], match.group()]
        end = match.end()
    return [piece for piece in (*pieces, text[end:]) if piece]


class PlainBPE:
    def __init__(self, tokens, merges, pre, special, nfc=False, ignore_merges=False):
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        self.expressions = LLAMA_CPP_EXPRESSIONS[pre]
        longest_first = sorted(special, key=len, reverse=True)
        self.special = regex.compile("|".join(map(regex.escape, longest_first)))
        self.nfc, self.ignore_merges = nfc, ignore_merges

    def encode(self, text):
        ids, end = [], 0
        for match in self.special.finditer(text):
            ids += [*self._plain(text[end : match.start()]), self.ids[match.group()]]
            end = match.end()
        return ids + self._plain(text[end:])

    def _plain(self, text):
        pieces = [unicodedata.normalize("NFC", text) if self.nfc else text] if text else []
        for expression in self.expressions:
            pieces = [part for piece in pieces for part in split(piece, expression)]
        return [i for piece in pieces for i in self._word("".join(_ALPHABET[byte] for byte in piece.encode()))]

    def _word(self, word):
        if self.ignore_merges and word in self.ids:
            return [self.ids[word]]
        symbols = [character for character in word if character in self.ids]
        while True:
            ranked = [(self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(zip(symbols, symbols[1:]))]
            rank, i = min(ranked, default=(len(self.ranks), 0))
            if rank == len(self.ranks):
                return [self.ids[symbol] for symbol in symbols]
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


class PlainSentencePiece:
    """SentencePiece's BPE: join the neighbours whose union scores best, the leftmost first; unknown characters become
    their bytes."""

    def __init__(self, pieces, scores, types, add_prefix_space=True, remove_extra_spaces=False):
        self.ids = {piece: i for i, piece in enumerate(pieces)}
        self.scores = {piece: score for piece, score, kind in zip(pieces, scores, types) if kind in (1, 4, 5)}
        self.add_prefix_space, self.remove_extra_spaces = add_prefix_space, remove_extra_spaces

    def encode(self, text):
        if self.remove_extra_spaces:
            text = regex.sub(" +", " ", text.strip(" "))
        if not text:
            return []
        symbols = list((" " * self.add_prefix_space + text).replace(" ", "\u2581"))
        while True:
            unions = [(-self.scores[union], i) for i in range(len(symbols) - 1)
                      if (union := symbols[i] + symbols[i + 1]) in self.scores]  # fmt: skip
            if not unions:
                break
            _, i = min(unions)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return [i for symbol in symbols for i in self._ids(symbol)]

    def _ids(self, symbol):
        return [self.ids[symbol]] if symbol in self.ids else [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
