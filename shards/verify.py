"""Check every byte of a build against its manifest, its indexes and the format's rules."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from shards.build import Build
from shards.errors import ShardError
from shards.format.container import END_OF_ARCHIVE, check_headers
from shards.format.manifest import NAME, Manifest, is_canonical
from shards.format.shard import Sample, Shard
from shards.storage.store import Store

IGNORE = -100
_OURS = ("shards", "tokenizer")  # folders where a file that the manifest does not name can do harm


@dataclass(slots=True)
class Verified:
    """What was looked at, and every problem found. A build is sound if `problems` is empty.

    notes: what a sound build may have and its owner may want to know.
    """

    shards: int
    samples: int
    images: int
    size_bytes: int
    problems: list[str]
    notes: list[str] = field(default_factory=list)


def verify(build: Build, *, progress: Callable[[int], None] = lambda size_bytes: None) -> Verified:
    """Read all files once. Raises ShardError only if the manifest itself cannot be used."""
    manifest, store = build.manifest, build.store
    found = Verified(shards=0, samples=0, images=0, size_bytes=0, problems=[])
    if not is_canonical(store.read(NAME)):
        found.problems.append(f"{store.name(NAME)}: says the right things in other bytes; it was edited or damaged")
    pinned = {NAME}
    for path, digest in manifest.files.items():
        pinned.add(path)
        _check_digest(store, path, None, digest, found, progress)
    sound_shards: list[tuple[str, Shard]] = []
    for dataset, split, info in manifest.shards():
        pinned |= {info.path, info.index}
        sound = _check_digest(store, info.path, info.size, info.sha256, found, progress)
        sound &= _check_digest(store, info.index, info.index_size, info.index_sha256, found, progress)
        if sound:
            try:
                shard = Shard(store, info)
                _check_index(shard)
                found.problems += _check_shard(shard, manifest, dataset, split)
                shard.forget_index()
                shard.close_tar()
                sound_shards.append((split, shard))
            except ShardError as error:
                found.problems.append(str(error))
        found.shards += 1
        found.samples += info.samples
        found.images += info.images
    found.problems += _check_unique(sound_shards)
    found.problems += _check_split(sound_shards)
    found.notes += _shared_pictures(sound_shards)
    for path in (path for folder in _OURS for path in store.files(folder)):
        if path not in pinned and not _is_a_guests(path, pinned):
            found.problems.append(f"{store.name(path)}: lies in the build but the manifest does not name it; remove it")
    return found


def _broken_promises(
    sample: Sample, row: Mapping[str, Any], manifest: Manifest, dataset: str, split: str
) -> Iterator[str]:
    """What the manifest and the index promise of every sample and this one does not keep."""
    image_id, limits = manifest.tokenizer.image_id, manifest.config.limits
    num_images = len(sample.images)
    length = len(sample.ids) - num_images + num_images * manifest.config.image_tokens
    trained = sample.labels != IGNORE
    metadata = sample.metadata
    in_vocabulary = (sample.ids >= 0) & (sample.ids < manifest.tokenizer.vocabulary_size)
    checks = {
        "its number of <image> placeholders and images differ": int((sample.ids == image_id).sum())
        == num_images
        == len(metadata["images"]),
        "a label is neither the token's id nor -100": bool(np.all(sample.labels[trained] == sample.ids[trained])),
        "nothing in it is trained": bool(trained.any()),
        "an image placeholder is trained": image_id not in sample.labels,
        "its trained tokens are not as many as the index says": row["trained_tokens"] == int(trained.sum()),
        "an id lies outside the vocabulary": bool(np.all(in_vocabulary)),
        f"its length {length} is over limits.max_length": length <= limits.max_length,
        "it has more images than limits.max_images": num_images <= limits.max_images,
        "its metadata names another dataset or split": metadata["dataset"] == dataset and metadata["split"] == split,
    }
    yield from (text for text, holds in checks.items() if not holds)


def _is_a_guests(path: str, pinned: set[str]) -> bool:
    """Megatron-Energon's `prepare` writes folders .nv-meta, and an .idx beside each tar."""
    return ".nv-meta" in path.split("/")[:-1] or (path.endswith(".tar.idx") and path.removesuffix(".idx") in pinned)


def _check_digest(
    store: Store, path: str, size: int | None, digest: str, found: Verified, progress: Callable[[int], None]
) -> bool:
    sha256 = hashlib.sha256()
    read = 0
    where = store.name(path)
    try:
        for part in store.stream(path):
            sha256.update(part)
            read += len(part)
            progress(len(part))
    except OSError as error:
        found.problems.append(f"{where}: cannot be read ({error.strerror or error})")
        return False
    found.size_bytes += read
    if size is not None and read != size:
        found.problems.append(f"{where}: has {read} bytes, the manifest says {size}")
        return False
    if sha256.hexdigest() != digest:
        found.problems.append(f"{where}: sha256 is {sha256.hexdigest()[:12]}, the manifest says {digest[:12]}")
        return False
    return True


def _check_index(shard: Shard) -> None:
    """Raises ShardError if a value in it cannot be read, which other checks rely on."""
    try:
        shard.index.table.validate(full=True)
    except (ValueError, pa.ArrowException) as error:
        raise ShardError(f"{shard.name}: its index {shard.info.index} is damaged: {error}") from None


def _check_shard(shard: Shard, manifest: Manifest, dataset: str, split: str) -> list[str]:
    """Samples against the index and the rules; the tar against a second reader, the standard library's."""
    problems: list[str] = []
    members: list[tuple[str, int]] = []
    end = 0
    try:
        for row, at in enumerate(shard.index.table.to_pylist()):
            sample = shard[row]
            if at["offset"] != end:
                problems.append(f"{shard.name}: sample {sample.key} starts at byte {at['offset']}, wanted {end}")
            end = at["offset"] + at["size"]
            problems += [
                f"{shard.name}: sample {sample.key}: {text}"
                for text in _broken_promises(sample, at, manifest, dataset, split)
            ]
            _, region, contents = shard.region(row)
            check_headers(sample.key, region, at["member_offsets"], at["member_sizes"])
            if [xxhash.xxh3_64_intdigest(content) for content in contents] != at["member_checksums"]:
                problems.append(f"{shard.name}: sample {sample.key}: its members do not match the index's checksums")
            members += [(sample.key, at["offset"] + start) for start in at["member_offsets"]]
        if end + len(END_OF_ARCHIVE) != shard.info.size:
            problems.append(f"{shard.name}: {shard.info.size} bytes, its samples end at {end}")
        with shard.file() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            seen = [(member.name.partition(".")[0], member.offset_data) for member in tar]
        if seen != members:
            problems.append(f"{shard.name}: its tar members are not those of the index")
        for name in ("images", "text_tokens", "trained_tokens"):
            total = int(shard.index.table.column(name).to_numpy().sum(dtype=np.uint64))
            if total != getattr(shard.info, name):
                wanted = getattr(shard.info, name)
                problems.append(f"{shard.name}: its index counts {total} {name}, the manifest {wanted}")
    except ShardError as error:
        problems.append(str(error))
    except (tarfile.TarError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        problems.append(f"{shard.name}: {error!r}")
    return problems


def _check_unique(shards: Sequence[tuple[str, Shard]]) -> Iterator[str]:
    """Keys by their 64-bit hashes, so that 10^7 of them take 80 MB."""
    hashes = [
        np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in shard.sample_keys()], dtype=np.uint64)
        for _, shard in shards
    ]
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_counts=True)
    repeated = values[counts > 1]
    if not len(repeated):
        return
    for (_, shard), own in zip(shards, hashes, strict=True):
        rows = np.flatnonzero(np.isin(own, repeated))
        if len(rows):
            yield f"{shard.name}: {len(rows)} keys stand elsewhere too, such as {shard.sample_keys()[rows[0]]}"


def _check_split(shards: Sequence[tuple[str, Shard]]) -> Iterator[str]:
    """No group is both trained on and held out. Memory: the groups of eval."""
    groups = {
        split: [(shard, shard.index.table.column("groups")) for side, shard in shards if side == split]
        for split in ("train", "eval")
    }
    held_out = {name for _, column in groups["eval"] for names in column.to_pylist() for name in names}
    for shard, column in groups["train"]:
        shared = sorted(held_out.intersection(name for names in column.to_pylist() for name in names))
        if shared:
            yield f"{shard.name}: {len(shared)} groups are in eval too, such as {shared[0]}"


def _shared_pictures(shards: Sequence[tuple[str, Shard]]) -> Iterator[str]:
    """Pictures of eval whose very bytes are trained on too, under whatever name. Memory: 8 bytes for each of eval's."""
    held_out = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *(_pictures(shard)[0] for side, shard in shards if side == "eval")])
    )
    trained = np.zeros(len(held_out), np.bool_)
    for side, shard in shards:
        if side == "train":
            trained |= np.isin(held_out, _pictures(shard)[0])
    for side, shard in shards:
        if side == "eval":
            checksums, rows = _pictures(shard)
            shared = np.isin(checksums, held_out[trained])
            if shared.any():
                count, key = len(np.unique(checksums[shared])), shard.sample_keys()[rows[shared][0]]
                yield f"{shard.name}: pictures that are in train too, byte for byte: {count}, such as in sample {key}"


def _pictures(shard: Shard) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The checksum of every picture in a shard, and its sample's row. A sample's first two members are no pictures."""
    members = shard.index.table.column("member_checksums").combine_chunks()
    checksums = pc.list_flatten(members).to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
    rows = pc.list_parent_indices(members).to_numpy(zero_copy_only=False)
    pictures = np.arange(len(rows)) - np.searchsorted(rows, rows) >= 2
    return checksums[pictures], rows[pictures]
