"""Benchmarks: ratios to a limit and to a naive peer, measured in one run (`make bench`)."""
