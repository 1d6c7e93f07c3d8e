"""Child of test_kv_cache_process.py: drives a library with TVM's runtime library alone, then dies in a given order.

usage: native_process.py LIBRARY ORDER
With TVM_USE_RUNTIME_LIB=1 the runtime is loaded by ``import tvm``, otherwise as the project's own runtime does.
"""

import ctypes
import os
import sys

if os.environ.get("TVM_USE_RUNTIME_LIB") == "1":
    import tvm  # noqa: F401
    import tvm_ffi
else:
    from runtime import tvm_runtime

    tvm_ffi = tvm_runtime.load()
    assert "tvm" not in sys.modules

library_path, order = sys.argv[1:]
library = tvm_ffi.load_module(library_path)
vm = library["vm_load_executable"]()
vm["vm_initialization"](1, 0, 2, 1, 0, 2)
cache = vm["create_tir_paged_kv_cache"](*[tvm_ffi.Shape([size]) for size in (4, 512, 256, 16, 0)])


def builtin(name, *args):
    return tvm_ffi.get_global_func("vm.builtin." + name)(cache, *args)


builtin("kv_state_add_sequence", 3)
builtin("kv_state_begin_forward", tvm_ffi.Shape([3]), tvm_ffi.Shape([70]))
positions = vm["step"](cache)[0]
layer = list(library.get_function("kv_cache_layer", query_imports=True)(cache, 0))
try:
    builtin("kv_state_popn", 3, 1)
except RuntimeError as error:
    assert "end the step first" in str(error), error
else:
    raise AssertionError("no error across the library boundary")
builtin("kv_state_end_forward")
with open("/proc/self/maps") as maps:
    loaded = maps.read()
assert "libtvm_runtime.so" in loaded and "libtvm_compiler" not in loaded

if order == "cache first":
    del cache
    del vm, library
elif order == "module first":
    del vm, library
    builtin("kv_state_fork_sequence", 3, 4, 65)
    del cache
elif order == "tensors last":
    del cache, vm, library
    numbers = ctypes.cast(ctypes.c_void_p(positions.data_ptr()), ctypes.POINTER(ctypes.c_int32))
    assert [numbers[i] for i in range(70)] == list(range(70)) and layer[0].shape[0] > 0
    del positions, layer
else:
    assert order == "at exit"
print("done")
