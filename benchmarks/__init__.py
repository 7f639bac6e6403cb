"""Arlow beside its peers in Transformers: one file per case, run by `python -m benchmarks [CASE ...]`."""
