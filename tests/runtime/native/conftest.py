"""Model libraries, built once: the same kernels and cache in float32 and in bfloat16."""

import pytest
from cache_library import build_cache_library
from compression_kernels import compression_kernels
from native_cache import load_library
from tvm.target import Target

from runtime.native.build import build_kv_cache_object


@pytest.fixture(scope="session")
def cache_object(tmp_path_factory):
    return build_kv_cache_object(tmp_path_factory.mktemp("native") / "kv_cache.o")


@pytest.fixture(scope="session")
def library_paths(cache_object):
    paths = {dtype: cache_object.with_name(f"{dtype}.so") for dtype in ("float32", "bfloat16")}
    return {dtype: build_cache_library(path, dtype, cache_object) for dtype, path in paths.items()}


@pytest.fixture(scope="session")
def libraries(library_paths):
    return {dtype: load_library(path) for dtype, path in library_paths.items()}


@pytest.fixture(scope="session")
def compressing_libraries(cache_object):
    """The same libraries with the kernels that compress."""
    libraries = {}
    for dtype in ("float32", "bfloat16"):
        path = cache_object.with_name(f"compressing_{dtype}.so")
        kernels = compression_kernels(dtype, Target("llvm"))
        libraries[dtype] = load_library(build_cache_library(path, dtype, cache_object, kernels))
    return libraries
