"""A sequence of a KV cache to a cache file and back, chunk by chunk, so that no second copy of it is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cache_file import CacheFileReader, CacheHeader, new_cache_file
from runtime.errors import UserError
from runtime.kv_state import KVState

# How the cache's own error begins (runtime/native/sequence_transfer.h); its other errors are of the same kind.
_CACHE_IS_FULL = "The KV cache is full"


def write_sequence(kv: KVState, seq_id: int, token_ids: Sequence[int], path: Path, origin: dict[str, Any]) -> None:
    """Write the sequence, whose tokens are ``token_ids``; UserError if the file cannot be written."""
    state = kv.save_sequence(seq_id)
    num_pages, page_bytes = kv.head_pages(seq_id)
    header = CacheHeader(origin, len(token_ids), len(state), num_pages, page_bytes)
    with new_cache_file(path, header) as file:
        file.write(np.asarray(token_ids, "<i4").view(np.uint8))
        file.write(state)
        buffer = np.empty(header.pages_per_chunk * page_bytes, np.uint8)
        for first in range(0, num_pages, header.pages_per_chunk):
            pages = buffer[: (num_pages - first) * page_bytes]
            kv.read_pages(seq_id, first, pages)
            file.write(pages)


def read_sequence(kv: KVState, seq_id: int, file: CacheFileReader, num_entries: int) -> None:
    """Make an empty sequence the one in the file. After an error it is half of it.

    Parameters
    ----------
    num_entries
        What the cache holds, for the message if that is too little.

    Raises
    ------
    UserError
        The file is damaged, of another layout, or does not fit into the cache.
    """
    try:
        kv.restore_sequence(seq_id, file.read())
    except RuntimeError as err:
        if _CACHE_IS_FULL not in str(err):
            raise
        raise UserError(
            f"the cache file {file.path} does not fit a KV cache of {num_entries} tokens: raise max_total_seq_length, "
            "or name another file"
        ) from None
    except ValueError as err:
        raise _other_layout(file.path, str(err)) from None
    if (file.header.num_pages, file.header.page_bytes) != kv.head_pages(seq_id):
        raise _other_layout(file.path, "its pages differ")
    for first, pages in file.page_chunks():
        kv.write_pages(seq_id, first, pages)


def _other_layout(path: Path, reason: str) -> UserError:
    reason = reason.strip().splitlines()[-1].rstrip(".")
    return UserError(f"the cache file {path} is not of this model library ({reason}): name another file")
