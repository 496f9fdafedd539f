"""Requests and their answers for benchmarks of the server."""
