"""Benchmarks: `just bench`. Figures, never asserts; ratios against a peer are taken within one run."""
