"""Columns of the table that are other engines: greedy answers of the benchmarks' workers to the same token ids.

No likelihoods: the engines are asked for tokens only, which all of them give.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.limits import kv_bytes_per_token
from benchmarks.measure import WorkerPlan, start_worker
from benchmarks.options import interpreters
from benchmarks.variants import PEERS, Variant
from benchmarks.worker import ENGINES
from benchmarks.worker_client import Worker, WorkerFailure, WorkerPool
from evaluation.branch import Answer
from evaluation.measure import Outcome, scored
from evaluation.runner import Job, Progress, result_of
from evaluation.store import ResultStore
from relax_models.config_gguf import config_from_gguf
from runtime.errors import UserError
from runtime.text_stream import AnswerText
from runtime.tokenizer import Tokenizer
from runtime.tvm_runtime import usable_cores

_START_SECONDS = 900  # to load a model: vLLM compiles in that time
_ROW_SECONDS = 3600


class PeerRunner:
    """Asks each peer for what the store lacks.

    ``gaps``: by peer, why an answer is missing. A peer that does not start is left alone for the rest of the run, one
    that fails at a row is started again for the next one.
    """

    def __init__(
        self,
        peers: Sequence[Variant],
        plan: WorkerPlan | None,
        context: int,
        pool: WorkerPool,
        tokenizer: Tokenizer,
        stop_token_ids: Collection[int],
        store: ResultStore,
    ) -> None:
        """``plan``: None if there are no peers. ``context``: tokens of the longest row, its answer included."""
        self._peers = list(peers)
        self._plan = plan
        self._context = context
        self._pool = pool
        self._tokenizer = tokenizer
        self._stop_token_ids = stop_token_ids
        self._store = store
        self._descriptions: dict[str, str] = {}
        self.gaps: dict[str, str] = {}

    def work(self, job: Job) -> int:
        """Tokens that a row still has to be prefilled, over all peers."""
        return len(self._missing(job)) * len(job.prompt_ids)

    def run(self, job: Job, on_prefill: Progress) -> None:
        """Run what the store does not have yet; ``on_prefill(job, tokens)`` after each answer."""
        for peer in self._missing(job):
            try:
                outcome = self._outcome(peer, job)
            except WorkerFailure as failure:
                self._pool.drop(peer.label)
                self.gaps[peer.label] = f"{job.row.id}: {failure}"
            else:
                self._store.add(result_of(job, peer.label, outcome, self._descriptions[peer.label]))
            on_prefill(job, len(job.prompt_ids))

    def _missing(self, job: Job) -> list[Variant]:
        return [peer for peer in self._peers if not self._store.has(job.row.id, peer.label)]

    def _outcome(self, peer: Variant, job: Job) -> Outcome:
        worker = self._pool.get(peer.label, lambda: self._start(peer))
        worker.request("prompt", _START_SECONDS, prompt=job.prompt_ids)
        count = job.row.max_new_tokens
        generated = worker.request("generate", _ROW_SECONDS, tokens=len(job.prompt_ids), count=count)["token_ids"]
        answer = cut(generated, self._stop_token_ids, job.row.stop, self._tokenizer)
        return scored(job.row, answer)

    def _start(self, peer: Variant) -> Worker:
        worker = None
        try:
            worker = start_worker(self._plan, peer, self._context)
            self._descriptions[peer.label] = worker.request("load", _START_SECONDS, prompt=[])["description"]
        except BaseException as error:
            if worker:
                worker.close()
            if isinstance(error, WorkerFailure):
                self._peers.remove(peer)
            raise
        return worker


def cut(token_ids: Sequence[int], stop_token_ids: Collection[int], stop: Sequence[str], tokenizer: Tokenizer) -> Answer:
    """What a greedy answer of ``token_ids`` would have been had it ended at an end-of-text token or a stop string."""
    text, ids, finished = AnswerText(tokenizer.decode, stop), [], False
    shown = ""
    for token_id in token_ids:
        if finished := token_id in stop_token_ids:
            break
        ids.append(token_id)
        shown += text.add(token_id)
        if finished := text.stopped:
            break
    return Answer(shown + text.finish(), ids, finished)


def find_peers(names: Sequence[str]) -> list[Variant]:
    """The rows of benchmarks.variants that are called so; UserError for another name."""
    known = {peer.label: peer for peer in PEERS}
    for name in names:
        if name not in known:
            raise UserError(f"--peer {name}: there is no such peer; choose from {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)]


def worker_plan(gguf: Path | None, pythons: list[str], vocab_size: int, longest: int) -> WorkerPlan:
    """The peers' model. UserError if it is missing, has not ``vocab_size`` tokens, or was trained for fewer
    than ``longest`` tokens: engines differ in what they do beyond that."""
    if gguf is None:
        raise UserError("peers need the model as a GGUF file: name it with --gguf")
    config = config_from_gguf(gguf)
    if config.vocab_size != vocab_size:
        raise UserError(f"{gguf} has {config.vocab_size} tokens and --model {vocab_size}: name the same model twice")
    if longest > (trained := config.max_position_embeddings):
        raise UserError(f"peers stop at the {trained} tokens of the training: lower --max-prompt-tokens")
    return WorkerPlan(
        gguf=gguf,
        threads=usable_cores(),
        pythons=interpreters(pythons, ENGINES),
        trained=trained,
        yarn_factor=1.0,
        kv_bytes_per_token=kv_bytes_per_token(config),
    )
