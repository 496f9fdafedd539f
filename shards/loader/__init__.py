"""Batches of tensors from a build, made ahead by worker processes. The only package here that imports torch."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(f"{error}; batches are made of torch's tensors: pip install 'dsvl[train]'") from None

from shards.loader.batch import Batch, normalize
from shards.loader.loader import Loader

__all__ = ["Batch", "Loader", "normalize"]
