"""A small SentencePiece vocabulary, and the tokenizer.model file that holds it."""

import struct

from tokenizers import Tokenizer, models, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog and then the other thing happens again and again",
    "  two spaces,   three spaces; def f(x):\n    return x + 1\n",
    "今天天气很好，我们去公园吧。今天我们去公园。",
    "the theory of the thermal therapist, banana ananas bandana",
]
ALPHABET = sorted(set("".join(CORPUS)) | set("xyzé!"))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def vocabulary():
    """(pieces, scores, types) as SentencePiece's trainer lays them out: special pieces, bytes, joined pieces from the
    best score on, single characters last, and one piece that the model's makers put in later."""
    trained = Tokenizer(models.BPE())
    lines = [line.replace(" ", "\u2581") for line in CORPUS]
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=230, show_progress=False))
    joined = [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1]) if len(piece) > 1]
    characters = sorted(set("".join(lines)))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *characters, "[unused9]"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(joined) + len(characters)) + [USER_DEFINED]
    scores = [0.0] * 259 + [float(-i) for i in range(len(joined) + len(characters))] + [0.0]
    assert len(joined) > 100
    return pieces, scores, types


PIECES, SCORES, TYPES = vocabulary()


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    """One protobuf field: int as varint, float as 32 bits, bytes with their length."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece_model(model_type=2, normalizer=b""):
    """A tokenizer.model file: sentencepiece_model.proto, with fields that the reader has to skip."""
    content = b""
    for piece, score, kind in zip(PIECES, SCORES, TYPES):
        content += field(1, field(1, piece.encode()) + field(2, score) + (field(3, kind) if kind != NORMAL else b""))
    content += field(2, field(2, b"prefix") + field(3, model_type) + field(10, 0.9995))
    return content + field(3, field(1, b"identity") + normalizer) + field(99, 7)
