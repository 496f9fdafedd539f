"""Files to be fetched into a cache, and what a cache holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from shards.storage.cache import Cache


def content(number: int, size: int = 100) -> bytes:
    return bytes([number]) * size


def fetch(
    cache: Cache,
    data: bytes,
    download: Callable[[], Iterable[bytes]] | None = None,
    ahead_if: Callable[[], bool] | None = None,
) -> Path:
    return cache.fetch(
        hashlib.sha256(data).hexdigest(),
        size=len(data),
        suffix=".tar",
        name="s3://bucket/a.tar",
        download=download or (lambda: [data]),
        ahead_if=ahead_if,
    )


def never() -> Iterable[bytes]:
    raise AssertionError("downloaded again")


def copies(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".lock"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in copies(folder))
