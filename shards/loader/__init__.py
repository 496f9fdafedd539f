"""Batches of tensors from a build, made ahead by worker processes. The only package here that imports torch."""

from shards.loader.batch import Batch, normalize
from shards.loader.loader import Loader

__all__ = ["Batch", "Loader", "normalize"]
