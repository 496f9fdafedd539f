"""The shard format: WebDataset tars of tokenized samples, their indexes, and the manifest that pins them.

    import shards

    build = shards.open("build")
    sample = build["train"][0]        # ids, labels: int32 [T]; images: the stored files' bytes

shards.loader, which makes batches of tensors, is imported by itself: it needs torch.
"""

from shards.build import Build
from shards.build import open_build as open  # noqa: A004  it is shards.open, as in gzip.open
from shards.cache import Cache
from shards.errors import ShardError
from shards.manifest import Manifest
from shards.shard import Sample, Shard
from shards.split import Split
from shards.verify import Verified, verify
from shards.writer import ShardInfo, ShardWriter

__all__ = [
    "Build",
    "Cache",
    "Manifest",
    "Sample",
    "Shard",
    "ShardError",
    "ShardInfo",
    "ShardWriter",
    "Split",
    "Verified",
    "open",
    "verify",
]
