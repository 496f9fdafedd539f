"""Shards that are downloaded ahead: which ones, when the machine is slow."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import shards
from shards import Cache
from shards.loader.downloads import Downloads
from shards.storage.remote import RemoteStore
from tests.support import small_caches
from tests.support.remote_builds import publish
from tests.support.small_caches import size_of, size_of_copies

folder = pytest.fixture(scope="module")(small_caches.make_folder)


class SlowStore(RemoteStore):
    """Its threads wait before the tar of a shard until they are let go."""

    def __init__(self, url: str, cache: Cache) -> None:
        super().__init__(url, cache)
        self.has_index, self.may_go_on = threading.Event(), threading.Event()

    def let_go(self) -> None:
        """Returns when all that is downloaded ahead is there."""
        self.may_go_on.set()
        for thread in threading.enumerate():
            if thread.name == "dsvl-download":
                thread.join(30)

    def fetch_ahead(self, path: str, *, size: int, sha256: str, is_needed: Callable[[], bool] = lambda: True) -> None:
        if path.endswith(".tar"):
            self.has_index.set()
            self.may_go_on.wait(30)
        super().fetch_ahead(path, size=size, sha256=sha256, is_needed=is_needed)


@pytest.mark.parametrize("was_read", [False, True])
def test_a_shard_that_was_read_meanwhile_is_not_downloaded_again(
    folder: Path, memory: str, tmp_path: Path, was_read: bool
) -> None:
    publish(folder, memory)
    build = shards.open(memory, cache=Cache(tmp_path, max_bytes=size_of(shards.open(folder))))
    store = SlowStore(memory, Cache(tmp_path, max_bytes=size_of(build)))
    info = build["train"].info(3)
    downloads = Downloads(store, build["train"])
    downloads.follow((3,))
    assert store.has_index.wait(30)
    if was_read:
        downloads.drop({3})
    store.let_go()
    assert size_of_copies(tmp_path) == info.index_size + (0 if was_read else info.size)


def test_a_shard_of_a_window_that_ended_is_not_downloaded(folder: Path, memory: str, tmp_path: Path) -> None:
    publish(folder, memory)
    build = shards.open(memory, cache=Cache(tmp_path))
    store = SlowStore(memory, Cache(tmp_path))
    infos = [build["train"].info(number) for number in (3, 4)]
    downloads = Downloads(store, build["train"])
    downloads.follow((3,))
    assert store.has_index.wait(30)
    downloads.follow((4,))
    store.let_go()
    assert size_of_copies(tmp_path) == infos[0].index_size + infos[1].index_size + infos[1].size
