"""The engines that are compared, one class a file. Each runs in a worker process of its own (benchmarks/worker.py)."""
