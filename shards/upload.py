"""Publish a build at a URL: each shard as soon as it is complete, by whoever made it, and at last the rest.

Rule: as in a folder, a manifest there never describes files it was not made for. Shards go first: their names hold
their digests, so they overwrite nothing that an older manifest names. If the tokenizer's files or the rejects must
change, the old manifest goes before them; the new one comes last, after everything else was seen to be there. What an
interrupted upload brought over is not sent again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import LocationError, NetworkError, ShardError
from shards.format.manifest import SPLITS
from shards.format.manifest_file import NAME, is_build, named_files, read_manifest
from shards.format.shard_info import ShardInfo
from shards.storage.remote import RemoteStore
from shards.storage.store import LocalStore

_OUR_SHARD = re.compile(rf"shards/[^/]+/(?:{'|'.join(SPLITS)})-\d{{5,}}-[0-9a-f]{{8}}\.(?:tar|arrow)")
_OURS = {NAME, "rejects.jsonl", "tokenizer", "shards"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What has to be done so that a URL holds a build. Paths are relative to the build; sizes in bytes."""

    folder: Path
    shards: dict[str, int]
    others: dict[str, int]
    manifest: int | None
    """Its size if it has to be written."""

    stale: tuple[str, ...]
    """Files there of an older build."""

    pinned: dict[str, int]
    """All files of the build but the manifest."""

    digests: dict[str, str]
    """SHA-256 of all files."""

    @property
    def paths(self) -> tuple[str, ...]:
        """In the order in which they are sent."""
        return (*self.shards, *self.others, *([] if self.manifest is None else [NAME]))

    @property
    def size_bytes(self) -> int:
        return sum(self.shards.values()) + sum(self.others.values()) + (self.manifest or 0)


def check_target(store: RemoteStore) -> None:
    """Raises LocationError for a missing bucket or a folder with other files, ShardError if it cannot be listed."""
    try:
        names = _entries(store)
    except NetworkError as error:
        raise ShardError(f"{store.location}: {error}") from error
    except FileNotFoundError:
        raise LocationError(f"{store.location}: there is no such bucket; make it, or fix the URL") from None
    if NAME in names and is_build(_read(store, NAME) or b""):
        return
    foreign = names - _OURS or (names & {NAME}) or (names if "shards" not in names else set())
    if foreign:
        raise LocationError(
            f"{store.location}: holds other files, such as {min(foreign)}, which a build would mix with its own; "
            "choose another URL"
        )


def send_shard(root: Path, shard: ShardInfo, store: RemoteStore) -> None:
    """Bring the two files of a shard from below `root` to the URL, unless they are there. Raises ShardError.

    Names hold digests, so a file of this name with this size is one that an interrupted run sent; it is read, as a
    damaged one must be sent again.
    """
    digests = shard.digests()
    for path, size in shard.sizes():
        try:
            there = store.size(path)
        except FileNotFoundError:
            there = None
        if there != size or not _same(store, path, digests[path]):
            _put(root, store, path, digests[path])


def plan_upload(folder: Path, store: RemoteStore) -> Upload:
    """Compare a finished build with what is at the URL. Raises ShardError if either cannot be read."""
    manifest = read_manifest(LocalStore(folder))
    infos = [info for _, _, info in manifest.shards()]
    shards = {path: size for info in infos for path, size in info.sizes()}
    others = {path: (folder / path).stat().st_size for path in manifest.files}
    there = store.sizes("shards")
    old = _read(store, NAME)
    new = (folder / NAME).read_bytes()
    upload_shards = {path: size for path, size in shards.items() if there.get(path) != size}
    changed = {path: size for path, size in others.items() if not _same(store, path, manifest.files[path])}
    gone = named_files(old or b"") - others.keys()
    return Upload(
        folder=folder,
        shards=upload_shards,
        others=changed,
        manifest=len(new) if changed or old != new else None,
        stale=tuple(
            sorted(
                {path for path in there if path not in shards and _OUR_SHARD.fullmatch(path)}
                | (gone & store.sizes("tokenizer").keys() if gone else set())
            )
        ),
        pinned=shards | others,
        digests={
            **{path: sha256 for info in infos for path, sha256 in info.digests().items()},
            **manifest.files,
            NAME: hashlib.sha256(new).hexdigest(),
        },
    )


def run_upload(
    upload: Upload, store: RemoteStore, *, progress: Callable[[int], None] = lambda size_bytes: None
) -> None:
    """Do it. Raises ShardError if the URL cannot be written; the same upload, planned again, resumes from there."""
    for path, size in upload.shards.items():
        _put(upload.folder, store, path, upload.digests[path])
        progress(size)
    if upload.others:
        _remove(store, NAME)
    for path, size in upload.others.items():
        _put(upload.folder, store, path, upload.digests[path])
        progress(size)
    if upload.manifest is not None:
        _check_arrived(upload, store)
        _put(upload.folder, store, NAME, upload.digests[NAME])
        progress(upload.manifest)
    for path in upload.stale:
        _remove(store, path)


def _entries(store: RemoteStore) -> set[str]:
    """Names at the URL, one level deep. Raises FileNotFoundError if there is not even a bucket."""

    def look(files: Any, root: str) -> set[str]:
        files.invalidate_cache()
        try:
            return {str(path).rstrip("/").rpartition("/")[2] for path in files.ls(root, detail=False)}
        except FileNotFoundError:
            files.find(root)  # empty where a build may begin, an error where there is no bucket
            return set()

    return store.ask(look)


def _read(store: RemoteStore, path: str) -> bytes | None:
    try:
        return store.read(path)
    except FileNotFoundError:
        return None


def _same(store: RemoteStore, path: str, sha256: str) -> bool:
    """Whether the file there has this content; it is read, since its name says nothing of it."""
    digest = hashlib.sha256()
    try:
        for piece in store.stream(path):
            digest.update(piece)
    except FileNotFoundError:
        return False
    except NetworkError as error:
        raise ShardError(f"{store.name(path)}: {error}") from error
    return digest.hexdigest() == sha256


def _put(folder: Path, store: RemoteStore, path: str, sha256: str) -> None:
    try:
        store.put(path, folder / path, sha256)
    except NotImplementedError:
        raise ShardError(f"{store.name(path)}: cannot be written: fsspec only reads from URLs of this kind") from None
    except (NetworkError, FileNotFoundError) as error:
        if not (folder / path).exists():
            step = "it was removed there after its task had sent it; run the same build again"
            raise ShardError(f"{store.name(path)}: is not there: {step}") from None
        raise ShardError(f"{store.name(path)}: cannot be written: {error}") from error


def _remove(store: RemoteStore, path: str) -> None:
    def remove(files: Any, root: str) -> None:
        try:
            files.rm_file(f"{root}/{path}")
        except FileNotFoundError:
            return

    try:
        store.ask(remove)
    except NetworkError as error:
        raise ShardError(f"{store.name(path)}: cannot be removed: {error}") from error


def _check_arrived(upload: Upload, store: RemoteStore) -> None:
    """Raises ShardError unless everything that the manifest will name is there in full length."""
    there = store.sizes("shards")
    for path in upload.pinned:
        if not path.startswith("shards/"):
            with contextlib.suppress(FileNotFoundError):
                there[path] = store.size(path)
    for path, size in upload.pinned.items():
        if there.get(path) != size:
            got = f"has {there[path]} bytes" if path in there else "is not there"
            raise ShardError(f"{store.name(path)}: {got} after its upload, expected {size} bytes; run it again")
