"""Benchmarks: this runtime, what one would use instead, and the limit, side by side in one run."""
