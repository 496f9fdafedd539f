"""The images of a folder, an archive or a build, fingerprinted like those of a blend.

Each place with images becomes a spool of its own with one entry an image; a build has one for each of its shards, so
that no process opens all of them at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from preprocess.compiler.fingerprints import FingerprintStage, ImageTable
from preprocess.compiler.image_states import image_states
from preprocess.compiler.spool import Spool, write_spool
from preprocess.conversation import Conversation, Image, RecordSource, Turn
from preprocess.dedupe.fingerprint import FINGERPRINT, Fingerprints, Level
from preprocess.errors import DataError
from preprocess.images.index import ArchiveIndex
from preprocess.images.index_cache import current_files, find_index
from preprocess.images.stores import open_store, prepare_store
from shards.build import open_build
from shards.files import partial_path
from shards.format.manifest_file import NAME as MANIFEST

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".tif", ".tiff")

_SHARD_END = ".tar/"
"""Between a shard of a build and an image in it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceImages:
    """fingerprints: [K]. names: [K], the path of each image below the folder, or its name in the archive."""

    fingerprints: Fingerprints
    names: Sequence[str]


NO_IMAGES = ReferenceImages(fingerprints=np.zeros(0, FINGERPRINT), names=())


def has_images(path: Path, stage: FingerprintStage) -> bool:
    """Whether there are images below `path`; a file that is not an archive has none. Raises DataError."""
    if path.suffix in (".txt", ".jsonl"):
        return False
    try:
        return any(names for _, names in _listed(path, stage))
    except DataError:
        if path.is_file() and path.suffix == ".json":  # of records, not of images
            return False
        raise


def reference_images(path: Path, stage: FingerprintStage, level: Level) -> ReferenceImages:
    """The images below `path`, sorted by name. Raises DataError if there is none, or `path` cannot be read.

    stage: whose cache and engine are used; its datasets are not.
    """
    spools: dict[str, Spool] = {}
    stores: dict[str, tuple[Path, ...]] = {}
    prefixes: dict[str, str] = {}
    for store, names in _listed(path, stage):
        name = f"{len(spools)}"
        spools[name] = _spool(names, stage)
        stores[name] = (store,)
        prefixes[name] = f"{store.relative_to(path).as_posix()}/" if store != path else ""
    states = image_states(spools, stores, stage.cache, stage.run)
    own = replace(stage, spools=spools, stores=stores, states=states)
    images = ImageTable(own)
    if not len(images):
        raise DataError(f"{path}: has no images; expected files named {', '.join(EXTENSIONS)}, an archive or a build")
    fingerprints = own.fingerprints(images, np.arange(len(images)), level)
    labels = [
        prefixes[name] + image.name
        for name, numbers in images.of_dataset(np.arange(len(images)))
        for image in spools[name].images_at(images.positions(numbers))
    ]
    return ReferenceImages(fingerprints=fingerprints, names=labels)


def read_reference(path: Path, name: str, cache: Path) -> bytes:
    """The bytes of an image by its name in `reference_images(path)`.

    cache: where the index of an archive is kept. Raises RejectError for an image that is not there, DataError, OSError.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        shard, end, name = name.partition(_SHARD_END)
        path = path / f"{shard}{end[:-1]}"
    prepare_store(path, cache)
    return open_store(path, cache).read(name)


def _listed(path: Path, stage: FingerprintStage) -> Iterator[tuple[Path, list[str]]]:
    """Each image store below `path`, with the names of its images."""
    if path.is_dir() and not (path / MANIFEST).is_file():
        yield path, _in_folder(path)
        return
    archives = [path]
    if path.is_dir():
        archives = [path / info.path for _, _, info in open_build(path).manifest.shards()]
    for archive in archives:
        prepare_store(archive, stage.cache)
        stage.used.update(current_files(archive, stage.cache))
        keys = ArchiveIndex(find_index(archive, stage.cache).index_file).keys.to_pylist()
        names = sorted(bytes(key).decode("utf-8", "surrogateescape") for key in keys)
        yield archive, [name for name in names if archive.suffix == ".json" or name.lower().endswith(EXTENSIONS)]


def _in_folder(root: Path) -> list[str]:
    names = []
    for folder, below, files in os.walk(root):
        below.sort()
        inside = os.path.relpath(folder, root)
        names += [name if inside == "." else f"{inside}/{name}" for name in files if name.lower().endswith(EXTENSIONS)]
    return sorted(names)


def _spool(names: Sequence[str], stage: FingerprintStage) -> Spool:
    """A spool with one entry for each image, named in the cache by what it holds."""
    digest = xxhash.xxh3_128_hexdigest("\0".join(names).encode("utf-8", "surrogateescape"))
    folder = stage.cache / "ingest" / f"images-{digest}"
    if not folder.is_dir():
        partial = partial_path(folder)
        partial.mkdir(parents=True)
        counts = write_spool(partial, "", (_entry(name) for name in names))
        if counts["rejects"]:
            shutil.rmtree(partial)
            odd = next(name for name in names if name.encode("utf-8", "ignore").decode() != name)
            raise DataError(f"{odd!r}: the name of this image is not UTF-8; rename it")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    stage.used.add(folder)
    return Spool(folder)


def _entry(name: str) -> Conversation:
    source = RecordSource(file="", record=name)
    return Conversation(id=name, turns=(Turn(role="user", parts=(Image(name=name, store=0),)),), sources=(source,))
