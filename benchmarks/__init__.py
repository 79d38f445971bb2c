"""Benchmarks run from a checkout: ``python -m benchmarks.longtail``. Not part of the installed package."""
