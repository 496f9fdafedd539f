"""The files of a finished shard: where they are, whether they are as they were written, and their way to a URL."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.compiler.task import CompileTask
from shards import ShardInfo
from shards.files import file_sha256

if TYPE_CHECKING:
    from shards.storage.remote import RemoteStore


def shard_root(task: CompileTask, shard: ShardInfo) -> Path:
    """The folder above the shard: staging while it is new, the build once a manifest names it."""
    return task.staging if (task.staging / shard.path).is_file() else task.context.build


def send(root: Path, shard: ShardInfo, url: str) -> None:
    """Bring a complete shard to the URL, and remove it here: local files are those of the tasks that run."""
    from shards.upload import send_shard  # fsspec is loaded only for URLs

    send_shard(root, shard, _remote_store(url))
    for path, _ in shard.sizes():
        (root / path).unlink()


@lru_cache(maxsize=1)
def _remote_store(url: str) -> RemoteStore:
    """One connection for each worker process."""
    from shards.storage.remote import RemoteStore

    return RemoteStore(url)


def untouched(task: CompileTask, shard: ShardInfo, written_ns: tuple[int, ...]) -> bool:
    """Whether sizes and times are those of the write; with other times, as in a copied folder, compare the bytes."""
    root = shard_root(task, shard)
    pinned = ((shard.path, shard.size, shard.sha256), (shard.index, shard.index_size, shard.index_sha256))
    if any((root / path).stat().st_size != size for path, size, _ in pinned):
        return False
    if changed_ns(root, shard) == written_ns:
        return True
    return all(file_sha256(root / path) == digest for path, _, digest in pinned)


def changed_ns(root: Path, shard: ShardInfo) -> tuple[int, ...]:
    return tuple((root / path).stat().st_mtime_ns for path in (shard.path, shard.index))
