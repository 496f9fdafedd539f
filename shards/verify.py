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
import xxhash

from shards.build import Build
from shards.errors import ShardError
from shards.format.branches import branch_problems
from shards.format.container import END_OF_ARCHIVE, IGNORE, check_headers
from shards.format.manifest import BuildConfig, Manifest
from shards.format.manifest_file import NAME, is_canonical
from shards.format.sample import Sample
from shards.format.shard import Shard
from shards.images.tiles import Grid
from shards.storage.store import Store

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
    result = Verified(shards=0, samples=0, images=0, size_bytes=0, problems=[])
    if not is_canonical(store.read(NAME)):
        result.problems.append(f"{store.name(NAME)}: says the right things in other bytes; it was edited or damaged")
    pinned = {NAME}
    for path, digest in manifest.files.items():
        pinned.add(path)
        _check_digest(store, path, None, digest, result, progress)
    sound_shards: list[tuple[str, Shard]] = []
    for dataset, split, info in manifest.shards():
        pinned |= {info.path, info.index}
        sound = _check_digest(store, info.path, info.size, info.sha256, result, progress)
        sound &= _check_digest(store, info.index, info.index_size, info.index_sha256, result, progress)
        if sound:
            try:
                shard = Shard(store, info)
                _check_index(shard)
                result.problems += _check_shard(shard, manifest, dataset, split)
                shard.forget_index()
                shard.close_tar()
                sound_shards.append((split, shard))
            except ShardError as error:
                result.problems.append(str(error))
        result.shards += 1
        result.samples += info.samples
        result.images += info.images
    result.problems += _check_unique(sound_shards)
    result.problems += _check_split(sound_shards)
    result.notes += _shared_images(sound_shards)
    for path in (path for folder in _OURS for path in store.files(folder)):
        if path not in pinned and not _is_a_guests(path, pinned):
            result.problems.append(f"{store.name(path)}: is in the build but not in the manifest; remove it")
    return result


def _broken_promises(
    sample: Sample, entry: Mapping[str, Any], manifest: Manifest, dataset: str, split: str
) -> Iterator[str]:
    """What the manifest and the index promise of every sample and this one does not keep."""
    image_id, limits = manifest.tokenizer.image_id, manifest.config.limits
    num_images = len(sample.images)
    length = len(sample.ids) - num_images + sample.tiles * manifest.config.image_tokens
    trained = sample.labels != IGNORE
    metadata = sample.metadata
    grids = list(zip(sample.grids, metadata["images"], strict=False)) if manifest.has_tiles else []
    in_vocabulary = (sample.ids >= 0) & (sample.ids < manifest.tokenizer.vocabulary_size)
    checks = {
        "its number of <image> placeholders and images differ": int((sample.ids == image_id).sum())
        == num_images
        == len(metadata["images"]),
        "a label is neither the token's id nor -100": bool(np.all(sample.labels[trained] == sample.ids[trained])),
        "nothing in it is trained": bool(trained.any()),
        "an image placeholder is trained": image_id not in sample.labels,
        "its trained tokens are not as many as the index says": entry["trained_tokens"] == int(trained.sum()),
        "an id is outside the vocabulary": bool(np.all(in_vocabulary)),
        f"its length {length} is over limits.max_length": length <= limits.max_length,
        "it has more images than limits.max_images": num_images <= limits.max_images,
        "it has more tiles than limits.max_tiles": limits.max_tiles is None or sample.tiles <= limits.max_tiles,
        "a stored image is not the canvas of its grid": all(_is_canvas(*pair, manifest.config) for pair in grids),
        "its metadata names another dataset or split": metadata["dataset"] == dataset and metadata["split"] == split,
    }
    yield from (text for text, holds in checks.items() if not holds)
    if sample.branch_ids is None:
        return
    yield from branch_problems((sample.ids, sample.labels, sample.branch_ids), image_id, IGNORE)
    branches, references = metadata.get("branches"), metadata.get("references")
    if not isinstance(branches, list) or not _names_each(branches, len(sample.branches)):
        yield "its metadata does not name each of its branches"
    elif sum(branch["records"] for branch in branches) != len(metadata["sources"]):
        yield "its branches have other numbers of records than it has sources"
    if references is not None and [type(texts) for texts in references] != [list] * len(sample.branches):
        yield "its references are not a list for each of its branches"


def _is_canvas(grid: Grid, image: Mapping[str, Any], config: BuildConfig) -> bool:
    """Whether a resized image is as large as its grid says; one that is kept as it was may have any size."""
    return not config.stores_canvases or (image["width"], image["height"]) == grid.canvas(config.image.size)


def _names_each(branches: Sequence[Any], count: int) -> bool:
    """Whether metadata gives each of `count` branches an id and a number of records."""
    entries = [(each.get("id"), each.get("records")) for each in branches if isinstance(each, dict)]
    are_named = all(isinstance(name, str) and type(records) is int and records > 0 for name, records in entries)
    return len(branches) == len(entries) == count and are_named


def _is_a_guests(path: str, pinned: set[str]) -> bool:
    """Megatron-Energon's `prepare` writes folders .nv-meta, and an .idx next to each tar."""
    return ".nv-meta" in path.split("/")[:-1] or (path.endswith(".tar.idx") and path.removesuffix(".idx") in pinned)


def _check_digest(
    store: Store, path: str, size: int | None, digest: str, result: Verified, progress: Callable[[int], None]
) -> bool:
    sha256 = hashlib.sha256()
    read = 0
    where = store.name(path)
    try:
        for piece in store.stream(path):
            sha256.update(piece)
            read += len(piece)
            progress(len(piece))
    except OSError as error:
        result.problems.append(f"{where}: cannot be read ({error.strerror or error})")
        return False
    result.size_bytes += read
    if size is not None and read != size:
        result.problems.append(f"{where}: has {read} bytes, the manifest says {size}")
        return False
    if sha256.hexdigest() != digest:
        result.problems.append(f"{where}: sha256 is {sha256.hexdigest()[:12]}, the manifest says {digest[:12]}")
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
    by_branches = np.repeat(np.arange(len(shard.info.by_branches)) + 1, shard.info.by_branches).tolist()
    end = 0
    try:
        for number, entry in enumerate(shard.index.table.to_pylist()):
            sample = shard[number]
            if entry["offset"] != end:
                problems.append(f"{shard.name}: sample {sample.key} starts at byte {entry['offset']}, expected {end}")
            end = entry["offset"] + entry["size"]
            problems += [
                f"{shard.name}: sample {sample.key}: {text}"
                for text in _broken_promises(sample, entry, manifest, dataset, split)
            ]
            if len(sample.branches) != by_branches[number]:
                problems.append(
                    f"{shard.name}: sample {sample.key} has {len(sample.branches)} branches, the manifest says "
                    f"{by_branches[number]} of the sample there"
                )
            _, region, contents = shard.region(number)
            check_headers(sample.key, region, entry["member_offsets"], entry["member_sizes"])
            if [xxhash.xxh3_64_intdigest(content) for content in contents] != entry["member_checksums"]:
                problems.append(f"{shard.name}: sample {sample.key}: its members do not match the index's checksums")
            members += [(sample.key, entry["offset"] + start) for start in entry["member_offsets"]]
        if end + len(END_OF_ARCHIVE) != shard.info.size:
            problems.append(f"{shard.name}: {shard.info.size} bytes, its samples end at {end}")
        with shard.file() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            seen = [(member.name.partition(".")[0], member.offset_data) for member in tar]
        if seen != members:
            problems.append(f"{shard.name}: its tar members are not those of the index")
        if shard.info.tiles is not None:
            total = int(shard.tiles_of(np.arange(len(shard))).sum())
            if total != shard.info.tiles:
                problems.append(f"{shard.name}: its index counts {total} tiles, the manifest {shard.info.tiles}")
        for name in ("images", "text_tokens", "trained_tokens"):
            total = int(shard.index.table.column(name).to_numpy().sum(dtype=np.uint64))
            if total != getattr(shard.info, name):
                expected = getattr(shard.info, name)
                problems.append(f"{shard.name}: its index counts {total} {name}, the manifest {expected}")
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
        numbers = np.flatnonzero(np.isin(own, repeated))
        if len(numbers):
            yield f"{shard.name}: {len(numbers)} keys are elsewhere too, such as {shard.sample_keys()[numbers[0]]}"


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


def _shared_images(shards: Sequence[tuple[str, Shard]]) -> Iterator[str]:
    """Images of eval whose very bytes are trained on too, under any name. Memory: 8 bytes for each image of eval."""
    held_out = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *(_images(shard)[0] for side, shard in shards if side == "eval")])
    )
    trained = np.zeros(len(held_out), np.bool_)
    for side, shard in shards:
        if side == "train":
            trained |= np.isin(held_out, _images(shard)[0])
    for side, shard in shards:
        if side == "eval":
            checksums, numbers = _images(shard)
            shared = np.isin(checksums, held_out[trained])
            if shared.any():
                count, key = len(np.unique(checksums[shared])), shard.sample_keys()[numbers[shared][0]]
                yield f"{shard.name}: images that are in train too, byte for byte: {count}, such as in sample {key}"


def _images(shard: Shard) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The checksum of every image in a shard, and its sample's number. A sample's first two members are not images."""
    members = shard.index.table.column("member_checksums").combine_chunks()
    checksums = members.flatten().to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
    numbers = np.repeat(np.arange(len(members)), np.diff(members.offsets.to_numpy()))
    is_image = np.arange(len(numbers)) - np.searchsorted(numbers, numbers) >= 2
    return checksums[is_image], numbers[is_image]
