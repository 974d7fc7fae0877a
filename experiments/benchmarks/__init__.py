"""Benchmarks: ratios measured in one run, medians of interleaved repetitions."""
