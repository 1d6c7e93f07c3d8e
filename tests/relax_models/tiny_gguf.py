"""Small GGUF files, written by the gguf package."""

import gguf
import numpy as np


def write_gguf(path, tensors, architecture="llama", arrays=None, **keys):
    """`tensors`: name -> float32 array, or (quantization type, bytes [rows, bytes a row]). `keys`: metadata as in the
    file with "__" for "."; `arrays`: metadata that is an array, under its full name."""
    writer = gguf.GGUFWriter(path, architecture)
    keys = {f"{architecture}__block_count": 1, f"{architecture}__attention__head_count": 2} | keys
    for name, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](name.replace("__", "."), value)
    for name, value in (arrays or {}).items():
        writer.add_array(name, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            quantization, data = value
            writer.add_tensor(name, data, raw_dtype=quantization)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(array, quantization):
    """A float32 array as a `write_gguf` tensor of a quantization type that gguf can quantize to."""
    return quantization, gguf.quants.quantize(array.astype(np.float32), quantization)
