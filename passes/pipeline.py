"""The compilation pipeline: from an MLC-style IRModule to a module that the Relax VM code generator takes."""

from pathlib import Path

import tvm
from tvm import IRModule, relax
from tvm.target import Target

from runtime.policy import Policy
from tir_kernels.cpu.isa import vector_isa
from tir_kernels.gpu.features import gpu_features
from tir_kernels.stored_weight import WeightStorage

from .attach_compression import AttachCompression
from .attach_embedding_allocator import AttachEmbeddingAllocator
from .attach_logit_processing import AttachLogitProcessing
from .attach_metadata import AttachMetadata
from .attach_softmax import AttachSoftmaxWithTemperature
from .attach_variable_bounds import AttachVariableBounds
from .cpu_kernels import cpu_kernels
from .debug_dump import DebugDump
from .dispatch_kv_cache_creation import DispatchKVCacheCreation
from .dispatch_linear import DispatchLinear
from .dispatch_norm import DispatchNorm
from .explicit_attention import ExplicitAttention
from .fuse_swiglu import FuseSwiGLU
from .gpu_kernels import gpu_kernels
from .keep_kernels_apart import KeepKernelsApart
from .schedule_cpu import ScheduleCPU
from .schedule_gpu import ScheduleGPU
from .select_rows_early import SelectRowsEarly
from .simplify_reshape import SimplifyReshape

MAX_VERIFIED_TOKENS = 16  # of one sequence in a step of batch_verify: drafts are shorter (MLC's default is 4)


def library_pipeline(
    target: Target,
    weight_format: WeightStorage,
    metadata: dict,
    debug_dump: Path | None = None,
) -> tvm.transform.Pass:
    """The passes for any target: a CPU and a GPU differ in the set of kernels and in how the rest is scheduled.

    Parameters
    ----------
    target : where the library runs; its features choose the kernels.
    weight_format : how matrices are stored.
    metadata : of the library (``library_metadata``); its policy chooses the attention, its prefill_chunk_size,
        max_batch_size and vocab_size bound the temporary memory, and tokens from its active_vocab_size on are never
        drawn. Completed in place with memory figures and attached as ``_metadata``.
    debug_dump : folder for the module after each phase, or None.
    """
    if target.kind.name == "llvm":
        isa = vector_isa(target)
        kernels, schedule = cpu_kernels(isa), ScheduleCPU(isa)
    else:
        kernels, schedule = gpu_kernels(gpu_features(target)), ScheduleGPU(target)
    policy = Policy.from_dict(metadata["policy"])
    bounds = {
        "seq_len": metadata["prefill_chunk_size"],
        "batch_size": metadata["max_batch_size"],
        "vocab_size": metadata["vocab_size"],
    }
    # It returns the logits of every token: bound by a prefill chunk, they would take 1.2 GB with 152,000 words.
    verify_bounds = {"batch_verify": {"seq_len": metadata["max_batch_size"] * MAX_VERIFIED_TOKENS}}

    @tvm.transform.module_pass(opt_level=0, name="LibraryPipeline")
    def pipeline(mod: IRModule, _ctx: tvm.transform.PassContext) -> IRModule:
        return tvm.transform.Sequential(
            [
                # Phase 0. The functions of the MLC ABI that a model does not define
                DebugDump("phase0-model.py", debug_dump),
                AttachSoftmaxWithTemperature(kernels, metadata["active_vocab_size"]),
                AttachLogitProcessing(kernels),
                AttachEmbeddingAllocator(metadata["prefill_chunk_size"]),
                AttachVariableBounds(bounds, verify_bounds),
                # Phase 1. Operators -> kernels, on the graph
                SelectRowsEarly(),
                AttachCompression(kernels, policy),
                ExplicitAttention(kernels, policy),
                DispatchKVCacheCreation(policy.cache_text()),
                DispatchNorm(kernels),
                DispatchLinear(weight_format, kernels),
                FuseSwiGLU(kernels),
                SimplifyReshape(),
                DebugDump("phase1-kernels.py", debug_dump),
                # Phase 2. What is left becomes TIR, is fused and scheduled
                KeepKernelsApart(),
                relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),  # a view, which the VM makes at no cost
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
                schedule,
                DebugDump("phase2-scheduled.py", debug_dump),
                # Phase 3. To the VM, with planned memory
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.CallTIRRewrite(),
                relax.transform.CanonicalizeBindings(),
                relax.transform.StaticPlanBlockMemory(),
                AttachMetadata(metadata),
                DebugDump("phase3-planned.py", debug_dump),
                relax.transform.LowerAllocTensor(),
                relax.transform.LowerRuntimeBuiltin(),
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(mod)

    return pipeline
