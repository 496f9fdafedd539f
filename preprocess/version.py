"""The compiler's own version, part of every content key."""

COMPILER = 1
"""Raise it with any change that can alter a byte of a shard; finished tasks of older compilers are then not reused."""
