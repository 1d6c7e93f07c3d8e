"""A cache of a compiled library, driven as the MLC engine drives it: through TVM's builtins and the VM's functions."""

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi
from cache_sizes import HEAD_DIM, HEADS, KV_HEADS, LAYERS, PAGE
from tvm_ffi import Shape, get_global_func

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def load_library(path, device=tvm.cpu()):
    """Loads a model library the way MLC's engine does. Returns (library module, virtual machine, device)."""
    library = tvm.runtime.load_module(str(path))
    vm = library["vm_load_executable"]()
    vm["vm_initialization"](device.dlpack_device_type(), device.index, 2, 1, 0, 2)
    return library, vm, device


class NativeCache:
    """One cache. Arrays are numpy of the cache's dtype; k and v of a step are [layers, n, G, d].

    ``policy`` is the text that runtime/native/policy.h parses; None: the cache that the library's own function makes.
    """

    def __init__(self, library, dtype, max_batch=4, max_total=512, prefill_chunk=256, page_size=16, policy=None):
        self.library, self.vm, self.device = library
        self.dtype = NUMPY_DTYPES[dtype]
        sizes = (max_batch, max_total, prefill_chunk, page_size, 0)
        if policy is None:
            self.handle = self.vm["create_tir_paged_kv_cache"](*[Shape([size]) for size in sizes])
        else:
            model = Shape((LAYERS, HEADS, KV_HEADS, HEAD_DIM, PAGE))
            self.handle = self.create(Shape(sizes), model, dtype, policy)

    def create(self, sizes, model, dtype, policy):
        """What kv_cache_create returns for the device of the library."""
        return self.exported("kv_cache_create")(
            sizes, model, dtype, policy, tvm.runtime.empty((1,), device=self.device)
        )

    def configure(self, text):
        self.exported("kv_cache_configure")(self.handle, text)

    def builtin(self, name, *args):
        return get_global_func(f"vm.builtin.{name}")(self.handle, *args)

    def add(self, seq):
        self.builtin("kv_state_add_sequence", seq)

    def remove(self, seq):
        self.builtin("kv_state_remove_sequence", seq)

    def fork(self, parent, child, position=-1):
        self.builtin("kv_state_fork_sequence", parent, child, position)

    def pop(self, seq, n):
        self.builtin("kv_state_popn", seq, n)

    def clear(self):
        self.builtin("kv_state_clear")

    def begin(self, seqs, lengths, tree=None):
        extra = [] if tree is None else [Shape(tree)]
        self.builtin("kv_state_begin_forward", Shape(seqs), Shape(lengths), *extra)

    def end(self):
        self.builtin("kv_state_end_forward")

    def commit(self, seqs, leaves):
        self.builtin("attention_kv_cache_commit_accepted_token_tree_nodes", Shape(seqs), Shape(leaves))

    def may_shrink(self, seq):
        self.builtin("attention_kv_cache_enable_sliding_window_for_seq", seq, 1024, 4)

    @property
    def available_pages(self):
        return self.builtin("attention_kv_cache_get_num_available_pages")

    @property
    def total_length(self):
        return self.builtin("attention_kv_cache_get_total_sequence_length")

    @property
    def empty(self):
        return self.builtin("attention_kv_cache_empty")

    def step_tables(self):
        """(positions [n], query_indptr [B+1], tiles [num_tiles, 2]) of the open step."""
        return [t.numpy() for t in self.vm["step"](self.handle)]

    def exported(self, name):
        """A function of runtime/native, as the VM finds it."""
        return self.library.get_function(name, query_imports=True)

    def layer_tables(self, layer):
        """(append_slots, page_indptr, page_indices, kv_lengths) of a layer in the open step."""
        return [t.numpy() for t in list(self.exported("kv_cache_layer")(self.handle, layer))[2:]]

    def append(self, k, v):
        self.vm["append"](tvm.runtime.tensor(k, self.device), tvm.runtime.tensor(v, self.device), self.handle)

    def read(self):
        """(k, v), each [layers, B, G, entries, d], zero past a sequence's length: the step's pages, by its tables."""
        layers = self.vm["read"](self.handle)
        return tuple(np.stack([layers[layer][i].numpy() for layer in range(LAYERS)]) for i in range(2))

    def contents(self, seq, begin, end):
        """(k, v) of entries [begin, end), each [layers, end - begin, G, d], through DebugGetKV."""
        zeros = np.zeros((LAYERS, end - begin, KV_HEADS, HEAD_DIM), self.dtype)
        tensors = [tvm.runtime.tensor(zeros) for _ in range(2)]
        self.builtin("attention_kv_cache_debug_get_kv", seq, begin, end, *tensors)
        return tuple(t.numpy() for t in tensors)

    def save(self, seq, pieces=1):
        """(state, contents of the head pages), the contents read in so many pieces."""
        state = self.exported("kv_cache_save_sequence")(self.handle, seq)
        count, size = self.exported("kv_cache_head_pages")(self.handle, seq)
        contents = np.zeros((count, size), np.uint8)
        self._in_pieces("kv_cache_read_pages", seq, contents, pieces)
        return state, contents

    def restore(self, seq, state, contents, pieces=1):
        """Makes the empty sequence ``seq`` a saved one."""
        self.exported("kv_cache_restore_sequence")(self.handle, seq, state)
        assert tuple(self.exported("kv_cache_head_pages")(self.handle, seq)) == contents.shape
        self._in_pieces("kv_cache_write_pages", seq, contents, pieces)

    def _in_pieces(self, function, seq, contents, pieces):
        first = 0
        for piece in np.array_split(contents, pieces):
            self.exported(function)(self.handle, seq, first, tvm_ffi.from_dlpack(piece.reshape(-1)))
            first += len(piece)

    def forward(self, seqs, lengths, k, v, tree=None):
        """A whole step that appends k and v."""
        self.begin(seqs, lengths, tree)
        self.append(k, v)
        self.end()
