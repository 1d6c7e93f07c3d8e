"""Stores the matrices in the layout of the linear kernels and calls these kernels, with the ops behind a matmul
fused in."""

from math import prod

import tvm
from tvm import IRModule, relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.sym import Analyzer

from tir_kernels.stored_weight import WeightStorage

from .kernel_set import KernelSet
from .linear_chains import LinearChain, linear_chains
from .weight_plan import bindings_of, is_call, packed_params_var, weight_plan


@tvm.transform.module_pass(opt_level=0, name="DispatchLinear")
class DispatchLinear:
    """Changes the types in ``packed_params`` as :func:`weight_plan` says, and rewrites what reads the packed matrices.

    ``matmul(x, permute_dims(w))`` with the bias, residual add, cast or SwiGLU behind it becomes one call of the linear
    kernel on a two-dimensional x, ``take(w, ids)`` a call of the embedding kernel.
    """

    def __init__(self, weight_format: WeightStorage, kernels: KernelSet) -> None:
        self.weight_format = weight_format
        self.kernels = kernels

    def transform_module(self, mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        rewriter = _Rewriter(mod, self.weight_format, self.kernels)
        for var, func in mod.functions_items():
            if isinstance(func, relax.Function) and packed_params_var(func) is not None:
                rewriter.builder_.update_func(var, rewriter.rewrite(func))
        return rewriter.builder_.get()


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: IRModule, weight_format: WeightStorage, kernels: KernelSet) -> None:
        super().__init__(mod)
        self.plan = weight_plan(mod, weight_format)
        self.format = weight_format.kernel_format
        self.kernels = kernels
        self.matrices = {i for i, param in enumerate(self.plan) if param.is_matrix}
        sizes = [len(param.tensors) for param in self.plan]
        self.first = [sum(sizes[:i]) for i in range(len(sizes))]  # index of a parameter's first tensor
        self.emitted = {}
        self.analyzer = Analyzer()

    def rewrite(self, func: relax.Function) -> relax.Function:
        chains = linear_chains(func, self.matrices, self.kernels.swiglu is not None)
        self.params = packed_params_var(func)
        self.chain_of = {chain.result: chain for chain in chains}
        self.skipped = {var for chain in chains for var in chain.absorbed}
        self.weight_index = {
            binding.var: binding.value.index
            for binding in bindings_of(func)
            if isinstance(binding.value, relax.TupleGetItem) and binding.value.tuple_value.same_as(self.params)
        }
        tensors = [tensor for param in self.plan for tensor in param.tensors]
        types = [relax.TensorType(tensor.shape, tensor.dtype) for tensor in tensors]
        self.stored = relax.Var(self.params.name, relax.TupleType(types))
        self.set_var_remap(self.params, self.stored)
        self.tensors = {}
        rewritten = self.visit_expr(func)
        params = [self.stored if param.same_as(self.params) else param for param in func.params]
        return relax.Function(params, rewritten.body, rewritten.ret_ty, rewritten.is_pure, rewritten.attrs)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.skipped:
            return
        if binding.var in self.weight_index:
            self._take_tensors(binding.var)
            return
        value = binding.value
        if binding.var in self.chain_of:
            value = self._emit_linear(self.chain_of[binding.var])
        elif is_call(value, "relax.take") and self.weight_index.get(value.args[0]) in self.matrices:
            value = self._emit_embedding(binding.var, *value.args)
        super().visit_var_binding_(relax.VarBinding(binding.var, value))

    def _take_tensors(self, param: relax.Var) -> None:
        """Binds the tensors of a parameter. Where there are several, only kernels read ``param``."""
        index = self.weight_index[param]
        count = len(self.plan[index].tensors)
        items = [relax.TupleGetItem(self.stored, self.first[index] + i) for i in range(count)]
        self.tensors[param] = [self.builder_.emit(item, param.name) for item in items]
        self.set_var_remap(param, self.tensors[param][0])

    def _kernel(self, name: str, factory, *args, **kwargs) -> tvm.ir.GlobalVar:
        key = (name, args, tuple(sorted(kwargs.items())))
        if key not in self.emitted:
            self.emitted[key] = self.builder_.add_func(factory(*args, **kwargs), name)
        return self.emitted[key]

    def _matrix(self, x: relax.Expr) -> relax.Expr:
        """x with all axes but the last one folded into rows; vectors stay vectors."""
        if len(x.ty.shape) <= 2:
            return x
        *rows, width = x.ty.shape
        return self.builder_.emit(relax.op.reshape(x, (self.analyzer.simplify(prod(rows)), width)))

    def _emit_linear(self, chain: LinearChain) -> relax.Expr:
        """The kernel call; returns its result in the shape of the chain's result."""
        stored = self.plan[self.weight_index[chain.weight]]
        n, k = stored.logical_shape
        x = self._matrix(self.visit_expr(chain.x))
        rows = x.ty.shape[0]
        m = int(rows) if isinstance(rows, tirx.IntImm) else None
        args = [x, *self.tensors[chain.weight]]
        if chain.swiglu:
            n //= 2
            kernel = self._kernel("swiglu", self.kernels.swiglu, n, k, self.format, str(x.ty.dtype), m=m)
        else:
            fused = {"bias": chain.bias is not None, "residual": chain.residual is not None}
            name = "_".join(["linear", *(key for key, used in fused.items() if used)])
            kernel = self._kernel(
                name, self.kernels.linear, n, k, self.format, str(x.ty.dtype), out_dtype=chain.dtype, m=m, **fused
            )
            args += [
                self._matrix(self.visit_expr(extra)) for extra in (chain.bias, chain.residual) if extra is not None
            ]
        result = self.builder_.emit(relax.call_tir(kernel, args, relax.TensorType((rows, n), chain.dtype)))
        return relax.op.reshape(result, chain.result.ty.shape)

    def _emit_embedding(self, result: relax.Var, weight: relax.Var, ids: relax.Var) -> relax.Expr:
        stored = self.plan[self.weight_index[weight]]
        vocab_size, hidden_size = stored.logical_shape
        ids = self.visit_expr(ids)
        count = self.analyzer.simplify(prod(ids.ty.shape))
        dtype = str(result.ty.dtype)
        kernel = self._kernel("embedding", self.kernels.embedding, vocab_size, hidden_size, self.format, dtype)
        flat = self.builder_.emit(relax.op.reshape(ids, (count,)))
        rows = self.builder_.emit(
            relax.call_tir(kernel, [*self.tensors[weight], flat], relax.TensorType((count, hidden_size), dtype))
        )
        return relax.op.reshape(rows, result.ty.shape)
