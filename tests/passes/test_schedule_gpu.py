import tvm
from tvm import relax, te
from tvm.s_tir import dlight
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from passes.keep_kernels_apart import KeepKernelsApart
from passes.schedule_gpu import ScheduleGPU
from passes.target import parse_target
from tir_kernels.gpu.features import gpu_features
from tir_kernels.gpu.linear import linear

TARGET = parse_target("cuda", cuda_arch="80")


def doubled() -> tvm.tirx.PrimFunc:
    x = te.placeholder((1000,), "float32", "x")
    return te.create_prim_func([x, te.compute((1000,), lambda i: x[i] * 2, name="doubled")])


def test_an_elementwise_kernel_is_spread_over_threads():
    func = ScheduleGPU(TARGET)(tvm.IRModule({"main": doubled()}))["main"]
    text = func.script()
    assert func.attrs["tirx.is_scheduled"] and "blockIdx.x" in text and "threadIdx.x" in text


def test_a_scheduled_kernel_stays_as_it_is():
    func = doubled().with_attr("tirx.is_scheduled", True)
    tvm.ir.assert_structural_equal(ScheduleGPU(TARGET)(tvm.IRModule({"main": func}))["main"], func)


def device_kernels(func: tvm.tirx.PrimFunc) -> str:
    mod = ScheduleGPU(TARGET)(tvm.IRModule({"main": func}))
    return mod["main"].script()


def test_tensor_cores_where_target_dtype_and_size_have_them():
    gpu = gpu_features(TARGET)
    assert "m16n8k16" in device_kernels(linear(96, 64, "q4", "bfloat16", gpu))
    for func in (
        linear(96, 64, "q4", "float32", gpu),
        linear(96, 40, "plain", "float16", gpu),
        linear(96, 64, "q4", "float16", gpu, m=1),
    ):
        assert "m16n8k16" not in device_kernels(func)


def test_simdgroup_matrices_are_ours(monkeypatch):
    """Not those of TVM's rule, whose import takes seconds."""
    tries = []
    monkeypatch.setattr(dlight.gpu.matmul.MetalMatmul, "apply", lambda *arguments: tries.append(arguments))
    metal = parse_target("metal")
    for dtype, k, count in (("float16", 64, 1), ("float32", 64, 0), ("float16", 40, 0)):
        func = linear(96, k, "plain", dtype, gpu_features(metal))
        text = ScheduleGPU(metal)(tvm.IRModule({"main": func}))["main"].script()
        assert "threadIdx.x" in text and ("simdgroup_multiply_accumulate" in text) == count
    assert not tries


def test_rows_choose_the_form_of_a_product():
    text = device_kernels(linear(96, 64, "q4", "float16", gpu_features(TARGET)))
    assert text.count("tvm_thread_invariant(m <= T.int64(2))") == 1
    assert text.count("tvm_thread_invariant(m <= T.int64(8))") == 1


@I.ir_module
class TwoKernels:
    @T.prim_func(private=True, s_tir=True)
    def kernel(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
        for i in range(8):
            with T.sblock("y"):
                v = T.axis.spatial(8, i)
                y[v] = x[v] + T.float32(1)

    @R.function
    def main(x: R.Tensor((8,), "float32")):
        cls = TwoKernels
        with R.dataflow():
            a = R.call_tir(cls.kernel, (x,), out_ty=R.Tensor((8,), "float32"))
            b = R.call_tir(cls.kernel, (a,), out_ty=R.Tensor((8,), "float32"))
            R.output(b)
        return b


def fused_kernels(*first) -> list[str]:
    passes = [*first, relax.transform.AnnotateTIROpPattern(), relax.transform.FuseOps(), relax.transform.FuseTIR()]
    mod = tvm.transform.Sequential(passes)(TwoKernels)
    return [var.name_hint for var, func in mod.functions_items() if "fused" in var.name_hint]


def test_kernels_are_not_fused():
    assert fused_kernels() and not fused_kernels(KeepKernelsApart())
