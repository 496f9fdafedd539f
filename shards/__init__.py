"""The shard format: WebDataset tars of tokenized samples, their indexes, and the manifest that pins them.

    import shards

    build = shards.open("build")
    sample = build["train"][0]        # ids, labels: int32 [T]; images: the stored files' bytes

shards.loader, which makes batches of tensors, is imported by itself: it needs torch.
"""

from dst.errors import DsvlError
from shards.build import Build
from shards.build import open_build as open  # noqa: A004  it is shards.open, as in gzip.open
from shards.errors import ImageError, LocationError, ShardError
from shards.format.manifest import Manifest
from shards.format.sample import Sample
from shards.format.shard import Shard
from shards.format.shard_info import ShardInfo
from shards.format.split import SplitSamples
from shards.format.writer import ShardWriter
from shards.storage.cache import Cache
from shards.verify import Verified, verify

__all__ = [
    "Build",
    "Cache",
    "DsvlError",
    "ImageError",
    "LocationError",
    "Manifest",
    "Sample",
    "Shard",
    "ShardError",
    "ShardInfo",
    "ShardWriter",
    "SplitSamples",
    "Verified",
    "open",
    "verify",
]
