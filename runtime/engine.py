"""The engine: prompts in, streams of text out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.artifact import find_library, read_chat_config
from runtime.cache_file import CacheFileReader
from runtime.cache_origin import cache_origin, check_origin
from runtime.errors import UserError
from runtime.library import ModelLibrary
from runtime.operator_times import OperatorTimes
from runtime.params import load_params
from runtime.policy import Policy
from runtime.sampling import Sampler, SamplingParams
from runtime.sequence import CachedSequence, Progress
from runtime.stream_output import StreamOutput, Usage
from runtime.text_stream import AnswerText
from runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Sequence[dict[str, Any]]


class Engine:
    """A loaded model that answers one prompt at a time, from one thread.

    The cache keeps the last prompt and answer. A prompt that begins with the same tokens computes only the rest.
    """

    def __init__(
        self,
        model_dir: str | Path,
        model_lib: str | Path | None = None,
        policy: str = "",
        max_total_sequence_length: int | None = None,
    ) -> None:
        """Load a model folder and its library (by default the one found by MLC's folder convention).

        Parameters
        ----------
        policy
            As for ``set_policy``.
        max_total_sequence_length
            Entries that the KV cache may hold; the whole context by default. In a smaller cache a policy that
            compresses makes room when it is full, and the conversation goes on; without one it ends there.

        Raises
        ------
        UserError
            Folder or library is missing or damaged, or they do not belong together, or the policy is not possible at
            all or in so small a cache.
        """
        folder = Path(model_dir)
        config = read_chat_config(folder)
        library = ModelLibrary(find_library(folder) if model_lib is None else Path(model_lib))
        params = load_params(folder, config, library.metadata, library.path, library.device)
        self._folder = folder
        self._library = library
        self.tokenizer = Tokenizer(folder)
        self.metadata = library.metadata
        self.stop_token_ids = config.stop_token_ids
        self.default_sampling = SamplingParams.of_model(config)
        self._vocab_size = config.vocab_size
        # A vocabulary is often padded; the tokenizer of the folder says how much of it is real.
        self._active_vocab_size = config.active_vocab_size or library.metadata.active_vocab_size or config.vocab_size
        context_window_size = min(config.context_window_size, library.metadata.context_window_size)
        first_policy = self._changed(library.metadata.policy, policy)
        self._sequence = CachedSequence(library, params, context_window_size, max_total_sequence_length, first_policy)
        self._answer_number = 0

    @property
    def context_window_size(self) -> int:
        """Tokens of a prompt and its answer together: the model's, fewer in a small cache that keeps everything."""
        return self._sequence.max_length

    @property
    def policy(self) -> Policy | None:
        """What is done to attention and cache; None if the library has no policy."""
        return self._sequence.policy

    def operator_times(self) -> OperatorTimes:
        """Measure every operator from now on, for as long as this engine lives."""
        return OperatorTimes(self._library)

    def set_policy(self, settings: str) -> None:
        """Change settings of the policy, ``k=v;k=v`` with keys of ``runtime.policy.RUNTIME_FIELDS``.

        They hold from the next step on. The cached beginning of a conversation stays as it was computed; where that
        matters, ``clear_cache``.

        Raises
        ------
        UserError
            A key that is unknown or fixed by the compiled library, a value that is not allowed or not in so small a
            cache, or a library without a policy.
        """
        if settings.strip():
            self._sequence.set_policy(self._changed(self.policy, settings))

    def _changed(self, policy: Policy | None, settings: str) -> Policy | None:
        if not settings.strip():
            return policy
        if policy is None:
            raise UserError("the model library has no policy to change: compile it with this project's compile.py")
        return policy.changed(settings, self.metadata.policy)

    @property
    def cache_lengths(self) -> tuple[int, int]:
        """Tokens in the cache, and entries held of them (fewer after a compression)."""
        return len(self._sequence.token_ids), self._sequence.num_held_entries

    @property
    def cached_token_ids(self) -> list[int]:
        """The tokens in the cache; none after a step that was broken off."""
        return self._sequence.finished_token_ids

    @property
    def can_save_cache(self) -> bool:
        """Whether the library has what ``save_cache`` needs: a library of MLC has not, nor one of a first version."""
        return self._sequence.can_save

    @property
    def cache_is_whole(self) -> bool:
        """Whether no entry was dropped, so that the cache serves every prompt that begins with the same tokens."""
        return self._sequence.is_whole

    def num_reusable(self, token_ids: Sequence[int]) -> int:
        """Tokens of a prompt that would be found in the cache."""
        return self._sequence.reusable(token_ids)

    def gates(self) -> np.ndarray:
        """The record of the prefill in the cache, as ``CachedSequence.gates`` describes it."""
        return self._sequence.gates()

    def held_positions(self) -> list[list[np.ndarray]]:
        """``[layer][kv head]``: int32 positions of the tokens whose entries the cache holds."""
        cache = self.metadata.kv_cache
        return [
            [self._sequence.held_positions(layer, head) for head in range(cache.num_key_value_heads)]
            for layer in range(cache.num_hidden_layers)
        ]

    def save_cache(self, path: str | Path) -> None:
        """Write the cache to a file: the tokens of the last prompt and answer, and what is kept of their entries.

        An engine of the same model that loads it goes on with the same bits as this one. The file takes about as much
        room as the entries do in memory; memory is needed for a few MB more. It appears when it is complete.

        Raises
        ------
        UserError
            The cache is empty, the file cannot be written, or the library cannot give its cache away.
        """
        self._sequence.save(Path(path), self._cache_origin(compressed=not self._sequence.is_whole))

    def load_cache(self, path: str | Path) -> int:
        """Replace the cache by what ``save_cache`` wrote; return the number of its tokens.

        A prompt that begins with these tokens then computes only the rest.

        Raises
        ------
        UserError
            The file is missing, is no cache file, is damaged (the cache is then empty), is longer than the context, or
            was saved with other weights, another RoPE or another policy of the prefill (or of the compression, if it
            is compressed).
        """
        with self.open_cache(path) as file:
            self._answer_number += 1
            self._sequence.load(file)
            return file.header.num_tokens

    def open_cache(self, path: str | Path) -> CacheFileReader:
        """A cache file that this engine may load; raises as ``load_cache`` does, but for damage to the entries."""
        file = CacheFileReader(Path(path))
        try:
            origin = file.header.origin
            check_origin(file.path, origin, self._cache_origin(origin["compressed"]))
        except UserError:
            file.close()
            raise
        return file

    def _cache_origin(self, compressed: bool) -> dict[str, Any]:
        return cache_origin(self._folder, self.metadata, self.policy, compressed)

    def clear_cache(self) -> None:
        """Forget the last prompt and answer: the next prompt is computed from its beginning."""
        self._answer_number += 1
        self._sequence.clear()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a raw text, of a conversation (list of messages), or checked ids themselves.

        Raises
        ------
        UserError
            The prompt is empty, is no valid UTF-8, or has an id outside the vocabulary.
        """
        if isinstance(prompt, str):
            empty, ids = not prompt, self.tokenizer.encode(prompt)
        elif len(prompt) and isinstance(prompt[0], dict):
            empty, ids = not str(prompt[-1].get("content", "")).strip(), self.tokenizer.encode_chat(prompt)
        else:
            empty, ids = False, [int(token_id) for token_id in prompt]
            if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
                raise UserError(f"the prompt has a token id outside the vocabulary of {self._vocab_size}")
        if empty or not ids:
            raise UserError("the prompt is empty: give it some text")
        return ids

    def generate(
        self, prompt: Prompt, sampling: SamplingParams | None = None, *, on_prefill: Progress | None = None
    ) -> Iterator[StreamOutput]:
        """Stream the answer to a prompt. Abandoning the iterator stops the answer.

        Parameters
        ----------
        prompt
            A raw text to continue, a list of {"role", "content"} messages, or token ids.
        sampling
            None takes ``default_sampling``. ``max_tokens`` beyond the context is cut to it.
        on_prefill
            Called with (tokens done, tokens to do) before the first chunk of the prompt and after each. It may raise
            to stop; the finished chunks stay cached.

        Raises
        ------
        UserError
            The prompt is empty, malformed or longer than the context (at once, not at the first token).
        """
        sampling = sampling or self.default_sampling
        ids = self.encode(prompt)
        room = self.context_window_size - len(ids)
        if room < 1:
            raise UserError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.context_window_size} including the "
                "answer: shorten the prompt"
            )
        if unknown := [token_id for token_id in sampling.logit_bias if not 0 <= token_id < self._vocab_size]:
            raise UserError(f"logit_bias has token id {unknown[0]} outside the vocabulary of {self._vocab_size}")
        self._answer_number += 1
        return self._stream(self._answer_number, ids, sampling, min(sampling.max_tokens or room, room), on_prefill)

    def _stream(
        self, number: int, prompt: list[int], sampling: SamplingParams, max_tokens: int, on_prefill: Progress | None
    ) -> Iterator[StreamOutput]:
        self._check_current(number)
        sampler = Sampler(self._library, sampling, self._active_vocab_size)
        text_stream = AnswerText(self.tokenizer.decode, sampling.stop)
        started = time.perf_counter()
        cached = self._sequence.reuse(prompt)
        token_id = sampler.sample(self._sequence.prefill(prompt[cached:], on_prefill))
        prefill_seconds, decode_seconds = time.perf_counter() - started, 0.0
        for count in range(1, max_tokens + 1):
            text = "" if token_id in self.stop_token_ids else text_stream.add(token_id)
            finish_reason = None
            if token_id in self.stop_token_ids or text_stream.stopped:
                finish_reason = "stop"
            elif count == max_tokens:
                finish_reason = "length"
            if finish_reason is not None:
                usage = Usage(len(prompt), cached, count, prefill_seconds, decode_seconds)
                yield StreamOutput(text + text_stream.finish(), token_id, finish_reason, usage)
                return
            yield StreamOutput(text, token_id)
            self._check_current(number)
            started = time.perf_counter()
            token_id = sampler.sample(self._sequence.decode(token_id))
            decode_seconds += time.perf_counter() - started

    def _check_current(self, number: int) -> None:
        if number != self._answer_number:
            raise RuntimeError("this answer cannot go on: the engine has begun another one")
