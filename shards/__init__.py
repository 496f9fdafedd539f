"""The shard format: WebDataset tars of tokenized samples, their indexes, and the manifest that pins them.

build = shards.open_build("build")
for dataset, split, shard in build.shards(split="train"):
    sample = shard[0]        # ids, labels: int32 [T]; images: bytes
"""

from shards.build import Build, Sample, Shard, open_build
from shards.errors import ShardError
from shards.manifest import Manifest, read_manifest
from shards.verify import Verified, verify
from shards.writer import ShardInfo, ShardWriter

__all__ = [
    "Build",
    "Manifest",
    "Sample",
    "Shard",
    "ShardError",
    "ShardInfo",
    "ShardWriter",
    "Verified",
    "open_build",
    "read_manifest",
    "verify",
]
