"""Sizes of the model that the test libraries are built for."""

LAYERS, HEADS, KV_HEADS, HEAD_DIM, PAGE = 2, 4, 2, 16, 64
WINDOW = 16  # newest queries that the compression kernels see
