"""The file of ``--cache``: a long prompt is computed once, and what is done of it survives an interrupt."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from runtime.engine import Engine
from runtime.errors import UserError
from runtime.sequence import common_prefix

CACHE_HELP = "Keep the computed prompt in this file, and begin with it where the prompt is the same."
_SAVE_EVERY_S = 600.0
_SAVE_COST = 0.05  # at most this share of a prefill's time goes into saving, and of its tokens stays unsaved


class PromptCache:
    """Loads the file where it serves a prompt, and saves the cache in it while and after the prompt is computed.

    Only a cache that was not compressed is saved: after a compression it could serve no other question.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        """The file need not exist; UserError if it could not be written, or the library cannot give its cache away."""
        if not engine.can_save_cache:
            raise UserError("the model library cannot save its cache: compile it again with this project's compile.py")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
            raise UserError(f"the cache file {path} cannot be written: name a file in a folder that can")
        self._engine = engine
        self._path = path
        self._saved = np.zeros(0, np.int32)  # the token ids in the file
        self._saved_at = self._save_seconds = 0.0

    def restore(self, prompt: list[int]) -> None:
        """Load the file if it serves more of the prompt than memory does.

        Raises
        ------
        UserError
            The file is damaged or belongs to something else, or there is no room for the cache of the prompt.
        """
        self._saved_at = time.monotonic()
        if self._path.exists():
            with self._engine.open_cache(self._path) as file:
                self._saved = file.token_ids
            if (shared := common_prefix(self._saved, prompt)) > self._engine.num_reusable(prompt):
                self._engine.load_cache(self._path)
                print(f"cache: {shared} of {len(prompt)} prompt tokens from {self._path}", file=sys.stderr)
        if self._is_worthwhile(prompt):
            self._check_room(len(prompt))

    def after_step(self) -> None:
        """Save from time to time."""
        pause = max(_SAVE_EVERY_S, self._save_seconds / _SAVE_COST)
        if time.monotonic() - self._saved_at > pause:
            self.after_interrupt()

    def after_interrupt(self) -> None:
        """Save what is done, unless the file holds more."""
        if len(self._engine.cached_token_ids) > len(self._saved):
            self._save()

    def after_prefill(self) -> None:
        """Save unless the file has nearly all of it."""
        if self._is_worthwhile(self._engine.cached_token_ids):
            self._save()

    def _is_worthwhile(self, token_ids: list[int]) -> bool:
        return len(token_ids) - common_prefix(self._saved, token_ids) > _SAVE_COST * len(token_ids)

    def _check_room(self, num_tokens: int) -> None:
        needed = num_tokens * (self._engine.metadata.kv_bytes_per_token or 0)
        free = shutil.disk_usage(self._path.parent).free
        if needed > free:
            raise UserError(
                f"the cache of {num_tokens} tokens takes {needed / 1e9:.1f} GB, and {self._path.parent} has "
                f"{free / 1e9:.1f} GB free: make room, or do without --cache"
            )

    def _save(self) -> None:
        if not self._engine.cache_is_whole:
            return
        started = time.monotonic()
        try:
            self._engine.save_cache(self._path)
        except UserError as err:  # no reason to lose the answer
            print(f"warning: {err}", file=sys.stderr)
        else:
            self._saved = np.asarray(self._engine.cached_token_ids, np.int32)
            size = self._path.stat().st_size / 1e6
            print(f"cache: {len(self._saved)} tokens saved in {self._path} ({size:.1f} MB)", file=sys.stderr)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started
