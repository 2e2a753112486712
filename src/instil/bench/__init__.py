"""Benchmarks that ship with the package, to be run on any model."""
