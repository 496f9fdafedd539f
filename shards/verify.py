"""Check every byte of a build against its manifest, its indexes and the format's rules."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.build import Shard
from shards.container import END_OF_ARCHIVE
from shards.errors import ShardError
from shards.manifest import NAME, read_manifest
from shards.writer import ShardInfo

IGNORE = -100


@dataclass(slots=True)
class Verified:
    """What was looked at, and every problem found. A build is sound if `problems` is empty."""

    shards: int
    samples: int
    images: int
    size_bytes: int
    problems: list[str]


def verify(build: Path, *, progress: Callable[[int], None] = lambda size_bytes: None) -> Verified:
    """Read all files once. Raises ShardError only if the manifest itself cannot be used."""
    manifest = read_manifest(build)
    found = Verified(shards=0, samples=0, images=0, size_bytes=0, problems=[])
    pinned = {NAME}
    for path, digest in manifest.content["files"].items():
        pinned.add(path)
        _check_digest(build / path, None, digest, found, progress)
    rules = _Rules(manifest.content)
    for dataset, splits in manifest.shards.items():
        for split, shards in splits.items():
            for info in shards:
                pinned |= {info.path, info.index}
                sound = _check_digest(build / info.path, info.size, info.sha256, found, progress)
                sound &= _check_digest(build / info.index, info.index_size, info.index_sha256, found, progress)
                if sound:
                    found.problems += _check_shard(build, info, rules, dataset, split)
                found.shards += 1
                found.samples += info.samples
                found.images += info.images
    for path in sorted((build / "shards").rglob("*")):
        if path.is_file() and path.relative_to(build).as_posix() not in pinned:
            found.problems.append(f"{path}: lies in the build but the manifest does not name it; remove it")
    return found


@dataclass(frozen=True, slots=True)
class _Rules:
    """What the manifest promises of every sample."""

    content: Any

    def problems(self, sample: Any, row: dict[str, Any], dataset: str, split: str) -> Iterator[str]:
        image_id = self.content["tokenizer"]["image_id"]
        length = len(sample.ids) - len(sample.images) + len(sample.images) * self.content["config"]["image_tokens"]
        trained = sample.labels != IGNORE
        metadata = sample.metadata
        limits = self.content["config"]["limits"]
        checks = {
            "its number of <image> placeholders and images differ": int((sample.ids == image_id).sum())
            == len(sample.images)
            == len(metadata["images"])
            == row["images"],
            "a label is neither the token's id nor -100": bool(np.all(sample.labels[trained] == sample.ids[trained])),
            "nothing in it is trained": bool(trained.any()),
            "an image placeholder is trained": image_id not in sample.labels,
            "its counts differ from the index's": row["trained_tokens"] == int(trained.sum())
            and row["text_tokens"] == len(sample.ids) - len(sample.images),
            "an id lies outside the vocabulary": bool(
                np.all((sample.ids >= 0) & (sample.ids < self.content["tokenizer"]["vocabulary_size"]))
            ),
            f"its length {length} is over limits.max_length": length <= limits["max_length"],
            "it has more images than limits.max_images": len(sample.images) <= limits["max_images"],
            "its metadata names another dataset or split": metadata["dataset"] == dataset
            and metadata["split"] == split,
        }
        yield from (text for text, holds in checks.items() if not holds)


def _check_digest(path: Path, size: int | None, digest: str, found: Verified, progress: Callable[[int], None]) -> bool:
    sha256 = hashlib.sha256()
    read = 0
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                sha256.update(part)
                read += len(part)
                progress(len(part))
    except OSError as error:
        found.problems.append(f"{path}: cannot be read ({error.strerror})")
        return False
    found.size_bytes += read
    if size is not None and read != size:
        found.problems.append(f"{path}: has {read} bytes, the manifest says {size}")
        return False
    if sha256.hexdigest() != digest:
        found.problems.append(f"{path}: sha256 is {sha256.hexdigest()[:12]}, the manifest says {digest[:12]}")
        return False
    return True


def _check_shard(build: Path, info: ShardInfo, rules: _Rules, dataset: str, split: str) -> list[str]:
    """Samples against the index and the rules; the tar against a second reader, the standard library's."""
    problems: list[str] = []
    names: list[tuple[str, int]] = []
    try:
        shard = Shard(build, info)
        end = 0
        for row, at in enumerate(shard.index.to_pylist()):
            sample = shard[row]
            if at["offset"] != end:
                problems.append(f"{shard.path}: sample {sample.key} starts at byte {at['offset']}, wanted {end}")
            end = at["offset"] + at["size"]
            problems += [
                f"{shard.path}: sample {sample.key}: {text}" for text in rules.problems(sample, at, dataset, split)
            ]
            for start in at["member_offsets"]:
                names.append((sample.key, at["offset"] + start))
        if end + len(END_OF_ARCHIVE) != info.size:
            problems.append(f"{shard.path}: {info.size} bytes, its samples end at {end}")
        with tarfile.open(build / info.path, "r:") as tar:
            seen = [(member.name.partition(".")[0], member.offset_data) for member in tar]
        if seen != names:
            problems.append(f"{shard.path}: its tar members are not those of the index")
    except (ShardError, tarfile.TarError, KeyError, TypeError) as error:
        problems.append(str(error) if isinstance(error, ShardError) else f"{build / info.path}: {error!r}")
    return problems
