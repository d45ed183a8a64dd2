"""Proofs that take longer than tests may, with their results: `make proof`."""
