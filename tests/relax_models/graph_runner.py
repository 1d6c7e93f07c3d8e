"""Runs an exported model without the project's passes and kernels: TVM's default lowering, and attention in numpy.

It answers one question: do the Relax graph, the names of the weights and the parameters of the KV cache call describe
the model? Speed is of no interest.
"""

import json

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from relax_models.config import ModelConfig
from relax_models.registry import export_model
from relax_models.weight_names import hf_sources
from tir_kernels.rope_scaling import inv_freq

_BUILTIN = "vm.builtin.attention_kv_cache_attention_with_fused_qkv"
_NUMPY = "tests.relax_models.attention"


class NumpyCache:
    """Keys (rotated) and values of one sequence, set up from the arguments of the model's cache creation call."""

    current: "NumpyCache"

    def __init__(self, mod: tvm.IRModule):
        call = mod["create_paged_kv_cache"].body.blocks[0].bindings[0].value
        self.layers, self.heads, self.kv_heads, self.head_dim = (int(arg.value) for arg in call.args[4:8])
        theta, scaling = float(call.args[13].value), json.loads(call.args[14].value)
        self.frequencies, self.attention_scaling = inv_freq(theta, int(call.args[16].value), scaling)
        self.k = [np.zeros((0, self.kv_heads, self.head_dim)) for _ in range(self.layers)]
        self.v = [np.zeros((0, self.kv_heads, self.head_dim)) for _ in range(self.layers)]
        NumpyCache.current = self

    def attend(self, layer: int, scale: float, qkv: np.ndarray) -> np.ndarray:
        """Appends the new tokens' k and v, and returns their attention outputs; qkv [n, heads + 2 kv_heads, d]."""
        n, past = len(qkv), len(self.k[layer])
        q, k, v = np.split(qkv.astype(np.float64), [self.heads, self.heads + self.kv_heads], axis=1)
        positions = np.arange(past, past + n)
        self.k[layer] = np.concatenate([self.k[layer], self._rotate(k, positions)])
        self.v[layer] = np.concatenate([self.v[layer], v])
        group = self.heads // self.kv_heads
        keys, values = (np.repeat(a[layer], group, axis=1) for a in (self.k, self.v))
        scores = np.einsum("qhd,khd->hqk", self._rotate(q, positions), keys) * scale
        scores = np.where(np.arange(past + n) <= positions[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, values).astype(np.float32)

    def _rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        angles = np.outer(positions, self.frequencies.astype(np.float64))[:, None, :]
        cos, sin = np.cos(angles) * self.attention_scaling, np.sin(angles) * self.attention_scaling
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@tvm.register_global_func(_NUMPY, override=True)
def _attention(_cache, layer, scale, qkv, output) -> None:
    output.copyfrom(NumpyCache.current.attend(layer, scale, qkv.numpy()))


@mutator
class _UseNumpyAttention(PyExprMutator):
    def visit_extern_func_(self, func: relax.ExternFunc) -> relax.Expr:
        return relax.ExternFunc(_NUMPY) if func.global_symbol == _BUILTIN else func


class GraphRunner:
    """A float32 model from a config and weights by Hugging Face names."""

    def __init__(self, config: ModelConfig, weights: dict[str, np.ndarray], functions: tuple[str, ...]):
        mod, parameters = export_model(config, "float32")
        self.cache = NumpyCache(mod)
        self._mod = mod
        rewriter = _UseNumpyAttention(mod)
        kept = {}
        for var, func in mod.functions_items():
            if not isinstance(func, relax.Function):
                kept[var] = func
            elif var.name_hint in functions:
                kept[var] = rewriter.visit_expr(func)
        executable = tvm.compile(tvm.IRModule(kept), target="llvm")
        self._vm = relax.VirtualMachine(executable, tvm.cpu())
        self._parameters = tuple(
            tvm.runtime.tensor(np.concatenate([weights[source] for source in hf_sources(name, config)]))
            for name, _ in parameters
        )

    def reset(self) -> None:
        self.cache = NumpyCache(self._mod)

    def embed(self, ids: list[int]) -> np.ndarray:
        """[len(ids), hidden]."""
        return self._vm["embed"](tvm.runtime.tensor(np.array(ids, "int32")), self._parameters).numpy()

    def logits(self, function: str, embeddings: np.ndarray, *positions: np.ndarray) -> np.ndarray:
        """Calls one of the functions that take embeddings and the cache."""
        arguments = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (embeddings, *positions)]
        return self._vm[function](*arguments, "the numpy cache", self._parameters)[0].numpy()
