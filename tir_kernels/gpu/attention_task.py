"""What a block of a prefill attention works on: query rows of a tile, and the entries that they meet step by step."""

import math
from dataclasses import dataclass

from tvm.script import tirx as T

from tir_kernels.kv_pages import KVPages

from .features import GPUFeatures
from .model_pages import model_pages
from .register import register

QUERY_TILE = 64  # tokens in a query tile, as the cache plans them
NEVER = -1e30  # the score of an entry that a row does not see, and the running maximum before the first entry


@dataclass(frozen=True)
class AttentionShape:
    """Static shape of an attention kernel. A row is a query head of a token; row = token * group + head in group."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    page_size: int
    dtype: str
    gpu: GPUFeatures
    sm_scale: float
    kv_dtype: str = "model"

    @property
    def pages(self) -> KVPages:
        return model_pages(self.head_dim, self.page_size, self.dtype, self.kv_dtype)

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def token_and_head(self, row) -> tuple:
        """Token of the tile and head of the group of a row, which is not negative: division is cheap then."""
        return T.truncdiv(row, self.group), T.truncmod(row, self.group)

    @property
    def scale(self) -> float:
        """From a product of query and key to a score in base 2 units."""
        return self.sm_scale * math.log2(math.e)

    @property
    def index_dtype(self) -> str:
        """dtype of numbers that reach all of a pool; WebGPU has 32 bits only."""
        return "int32" if self.gpu.kind == "webgpu" else "int64"

    def page_place(self, page_indices, indices0, entry) -> tuple:
        """(page, offset in it), variables, of an entry of the sequence whose pages begin at page_indices[indices0]."""
        page, offset = page_indices[indices0 + entry // self.page_size], entry % self.page_size
        return tuple(register(T.cast(x, self.index_dtype), self.index_dtype) for x in (page, offset))

    def elements(self, count: int):
        """The last index of ``count`` elements of a page side by side."""
        return T.ramp(T.cast(0, self.index_dtype), 1, count)


@dataclass(frozen=True)
class ChosenBlocks:
    """TIR expressions: the blocks block_lists[segment, head, :count] of ``block_size`` entries each."""

    block_lists: T.Buffer
    segment: object
    head: object
    count: object
    block_size: int

    def entry(self, position):
        """The entry that comes at ``position`` when the blocks are laid side by side, or the last block's again."""
        block = T.min(position // self.block_size, self.count - 1)
        return self.block_lists[self.segment, self.head, block] * self.block_size + position % self.block_size


@dataclass(frozen=True)
class Task:
    """TIR expressions (int32 but for the buffers) of one tile and key/value head.

    A row of token i sees the ``chosen`` blocks, if the kernel knows any, then the entries from ``own`` on that come
    before visible0 + i.
    """

    q: T.Buffer
    k_pages: T.Buffer
    v_pages: T.Buffer
    out: T.Buffer
    page_indices: T.Buffer
    indices0: object  # the sequence's first page in page_indices
    token0: object  # in q
    head: object
    num_tokens: object
    visible0: object
    own: object
    chosen: ChosenBlocks | None


class Steps:
    """The entries that the rows of a block meet, ``width`` a step: first the chosen ones, then the own ones."""

    def __init__(self, shape: AttentionShape, task: Task, width: int, end_row):
        """``end_row``: the first row of the tile behind the block's."""
        self.shape, self.task, self.width = shape, task, width
        self.num_own = register(task.visible0 + shape.token_and_head(end_row - 1)[0] - task.own)
        chosen = task.chosen
        self.num_listed = 0 if chosen is None else register(chosen.count * chosen.block_size)
        self.num_chosen = 0 if chosen is None else register(T.ceildiv(self.num_listed, width))
        self.count = register(self.num_chosen + T.ceildiv(self.num_own, width))

    def _choose(self, step, for_chosen, for_own):
        return for_own if self.task.chosen is None else T.if_then_else(step < self.num_chosen, for_chosen, for_own)

    def _seen(self, step, num_own):
        return self._choose(step, self.num_listed - step * self.width, num_own - (step - self.num_chosen) * self.width)

    def limit(self, step):
        """Entries of the step that some row of the block sees; it may be more than the width."""
        return self._seen(step, self.num_own)

    def visible(self, step, row):
        """Entries of the step that ``row`` of the tile sees; it may be more than the width, or negative."""
        return self._seen(step, self.task.visible0 + self.shape.token_and_head(row)[0] - self.task.own)

    def place(self, step, i, run: int = 1) -> tuple:
        """(page, offset in it), variables, of entry ``i`` of the step; of another one if the step has fewer.

        ``i`` is a multiple of ``run``, and so is the offset.
        """
        task = self.task
        last = (self.num_own - 1) // run * run
        own = task.own + T.min((step - self.num_chosen) * self.width + i, last)
        listed = 0 if task.chosen is None else task.chosen.entry(step * self.width + i)
        return self.shape.page_place(task.page_indices, task.indices0, register(self._choose(step, listed, own)))
