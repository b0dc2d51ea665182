"""Throughput of the library against named peers; run with ``python -m benchmarks.run --help``."""
