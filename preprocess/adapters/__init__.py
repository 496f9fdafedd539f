"""Adapters: each reads a dataset's original layout and yields conversations or rejects."""
