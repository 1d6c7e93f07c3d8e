"""What kernels are told of a GPU. All of them run on the emulator, which can do more than they are told."""

from tir_kernels.gpu.features import GPUFeatures

GPUS = {
    "tensor cores": GPUFeatures("cuda", 32, 1024, 49152, tensor_cores=True, bfloat16=True, simdgroup_matrices=False),
    "no tensor cores": GPUFeatures(
        "cuda", 32, 1024, 49152, tensor_cores=False, bfloat16=False, simdgroup_matrices=False
    ),
    "small": GPUFeatures("webgpu", 32, 256, 16384, tensor_cores=False, bfloat16=False, simdgroup_matrices=False),
}
