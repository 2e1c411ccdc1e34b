"""Benchmarks: ratios against a limit and a naive peer, measured in one run. Started by `make bench`."""
