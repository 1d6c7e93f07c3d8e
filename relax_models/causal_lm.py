"""A decoder with its output projection, under the functions that MLC's engine calls."""

from typing import Any

from tvm import relax, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from relax_models.config import ModelConfig
from relax_models.decoder import Attention, Decoder
from relax_models.kv_cache import create_paged_kv_cache


class CausalLM(nn.Module):
    """Base of the families; a family names its attention.

    Every function takes the parameters as one tuple, last. Symbolic sizes: seq_len, batch_size. Logits are float32.
    """

    attention: type[Attention] = Attention

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.dtype = "float32"
        self.model = Decoder(config, self.attention)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, out_dtype="float32")

    def to(self, dtype: str | None = None) -> None:
        super().to(dtype=dtype)
        if dtype is not None:
            self.dtype = dtype

    def embed(self, input_ids: Tensor) -> Tensor:
        """int32 [seq_len] -> [seq_len, hidden]."""
        return self.model.embed_tokens(input_ids)

    def prefill(self, input_embed: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """[1, seq_len, hidden] -> logits of the last token [1, 1, vocab]."""
        hidden = _last_token(self.model(input_embed, paged_kv_cache))
        return self._logits(hidden), paged_kv_cache

    def decode(self, input_embed: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """[1, 1, hidden] -> [1, 1, vocab]."""
        return self._logits(self.model(input_embed, paged_kv_cache)), paged_kv_cache

    def batch_prefill(
        self, input_embeds: Tensor, logit_positions: Tensor, paged_kv_cache: PagedKVCache
    ) -> tuple[Tensor, PagedKVCache]:
        """[1, seq_len, hidden], all sequences one after the other, and int32 [batch_size], the rows whose logits are
        wanted -> [1, batch_size, vocab]."""
        hidden = self.model(input_embeds, paged_kv_cache)
        # nn.op.take reads outside of the rows for a bad position; clipping costs nothing.
        rows = relax.op.take(hidden._expr, logit_positions._expr, axis=1, mode="clip")
        return self._logits(op.wrap_nested(rows, "rows")), paged_kv_cache

    def batch_decode(self, input_embeds: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """[batch_size, 1, hidden] -> [batch_size, 1, vocab]."""
        return self._logits(self.model(input_embeds, paged_kv_cache)), paged_kv_cache

    def batch_verify(self, input_embeds: Tensor, paged_kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """[1, seq_len, hidden], all sequences one after the other -> logits of every token [1, seq_len, vocab]."""
        return self._logits(self.model(input_embeds, paged_kv_cache)), paged_kv_cache

    def create_paged_kv_cache(
        self,
        max_batch_size: tirx.Var,
        max_total_seq_len: tirx.Var,
        prefill_chunk_size: tirx.Var,
        page_size: tirx.Var,
        support_sliding_window: tirx.Var,
    ) -> PagedKVCache:
        return create_paged_kv_cache(
            self.config,
            self.dtype,
            max_batch_size,
            max_total_seq_len,
            prefill_chunk_size,
            page_size,
            support_sliding_window,
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        # The norm works row by row, so it comes after the choice of rows and runs on those only.
        hidden = self.model.norm(hidden)
        if self.config.tie_word_embeddings:
            return op.matmul(hidden, op.permute_dims(self.model.embed_tokens.weight), out_dtype="float32")
        return self.lm_head(hidden)

    def get_default_spec(self) -> nn.spec.ModuleSpec:
        """Argument types of the exported functions, as in mlc_llm's models."""
        hidden = self.config.hidden_size
        row, chunk, batch = [1, 1, hidden], [1, "seq_len", hidden], ["batch_size", 1, hidden]

        def function(**arguments: Any) -> dict[str, Any]:
            return arguments | {"$": {"param_mode": "packed", "effect_mode": "none"}}

        def embeddings(shape: list) -> nn.spec.Tensor:
            return nn.spec.Tensor(shape, self.dtype)

        cache = nn.spec.Object(object_type=PagedKVCache)
        sizes = (
            "max_batch_size",
            "max_total_seq_len",
            "prefill_chunk_size",
            "page_size",
            "support_sliding_window",
        )
        spec = {
            "embed": function(input_ids=nn.spec.Tensor(["seq_len"], "int32")),
            "prefill": function(input_embed=embeddings(chunk), paged_kv_cache=cache),
            "decode": function(input_embed=embeddings(row), paged_kv_cache=cache),
            "batch_prefill": function(
                input_embeds=embeddings(chunk),
                logit_positions=nn.spec.Tensor(["batch_size"], "int32"),
                paged_kv_cache=cache,
            ),
            "batch_decode": function(input_embeds=embeddings(batch), paged_kv_cache=cache),
            "batch_verify": function(input_embeds=embeddings(chunk), paged_kv_cache=cache),
            "create_paged_kv_cache": dict.fromkeys(sizes, int) | {"$": {"param_mode": "none", "effect_mode": "none"}},
        }
        return nn.spec.ModuleSpec.from_raw(spec, self)


def _last_token(x: Tensor) -> Tensor:
    """[b, n, d] -> [b, 1, d]."""

    def last(x: te.Tensor) -> te.Tensor:
        b, n, d = x.shape
        return te.compute((b, 1, d), lambda i, _, k: x[i, n - 1, k], name="last_token")

    return op.tensor_expr_op(last, name_hint="last_token", args=[x])
