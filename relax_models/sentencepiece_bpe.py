"""SentencePiece BPE vocabularies (Llama 2, Mistral, openPangu) as `tokenizers` objects.

SentencePiece joins, again and again, the neighbours whose union has the best score, the leftmost first. `tokenizers`
does the same by the rank of a merge, so every way of cutting a piece in two becomes a merge, ranked by the piece's
score: the rule by which Hugging Face made the published tokenizer.json of Llama 2 and Mistral. The two can differ
where one piece overlaps itself in a text and can be cut in several ways; no order of merges expresses that.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from runtime.errors import UserError

_SPACE = "\u2581"
# Numbers of SentencePiece's ModelProto, which GGUF's tokenizer.ggml.token_type repeats.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_BPE_MODEL = 2


@dataclass(frozen=True)
class SentencePieceVocabulary:
    """Piece i of the vocabulary is `pieces[i]` with a score (the higher, the earlier it is joined) and a type.

    add_prefix_space : a text begins as if a space stood before it; remove_extra_spaces : runs of spaces count as one.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    add_prefix_space: bool = True
    remove_extra_spaces: bool = False


def build_sentencepiece_bpe(vocabulary: SentencePieceVocabulary) -> Tokenizer:
    """The tokenizer of a vocabulary.

    CONTROL and UNKNOWN pieces become special tokens, USER_DEFINED ones added tokens that decoding keeps.
    """
    ids = {piece: index for index, piece in enumerate(vocabulary.pieces)}
    unknown = next((p for p, kind in zip(vocabulary.pieces, vocabulary.types) if kind == UNKNOWN), None)
    model = models.BPE(ids, _merges(vocabulary, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    steps = []
    if vocabulary.remove_extra_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if vocabulary.add_prefix_space:
        steps.append(normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_prefix_space:
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(undo)
    tokenizer.add_tokens(
        [
            AddedToken(piece, special=kind != USER_DEFINED, normalized=False)
            for piece, kind in zip(vocabulary.pieces, vocabulary.types)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def _merges(vocabulary: SentencePieceVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    joinable = {
        piece for piece, kind in zip(vocabulary.pieces, vocabulary.types) if kind in (NORMAL, USER_DEFINED, UNUSED)
    }
    ranked = [
        (-vocabulary.scores[ids[piece]], ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece in joinable
        for cut in range(1, len(piece))
        if piece[:cut] in joinable and piece[cut:] in joinable
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]


def read_sentencepiece_model(path: Path) -> SentencePieceVocabulary:
    """The vocabulary of a tokenizer.model file (SentencePiece's ModelProto). UserError if it is not a plain BPE."""
    model_type, normalization, pieces = _BPE_MODEL - 1, {}, []  # ModelProto's default type is unigram
    try:
        for field, value in _protobuf_fields(path.read_bytes()):
            if field == 1:
                piece = dict(_protobuf_fields(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                pieces.append((piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
            elif field == 2:
                model_type = dict(_protobuf_fields(value)).get(3, model_type)
            elif field == 3:
                normalization = dict(_protobuf_fields(value))
    except (IndexError, KeyError, ValueError, AttributeError, struct.error):
        raise UserError(f"{path} is not a SentencePiece model; get it again.") from None
    if model_type != _BPE_MODEL or normalization.get(2):
        raise UserError(
            f"{path} is not a plain BPE vocabulary; load the model's tokenizer with transformers and save it as "
            "tokenizer.json beside it."
        )
    texts, scores, types = zip(*pieces)
    return SentencePieceVocabulary(
        texts, scores, types, bool(normalization.get(3, True)), bool(normalization.get(4, True))
    )


def _protobuf_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: varints as int, everything else as its bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, varint()
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError(f"protobuf wire type {wire_type}")
        size = {1: 8, 5: 4}.get(wire_type) or varint() if wire_type != 2 else varint()
        if position + size > len(data):
            raise ValueError("truncated")
        yield key >> 3, data[position : position + size]
        position += size
