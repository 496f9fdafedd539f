"""What a loader refuses, and what ends a run: settings, states of other runs, damage, workers that died."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch.utils.data

import shards
from shards import Build, ShardError
from shards.loader import Batch, Loader
from tests.support.handmade_builds import Handmade, draft
from tests.support.loader_builds import compiled, loader, some
from tests.support.manifests import edit_manifest
from tests.support.remote_builds import content


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return compiled(tmp_path_factory.mktemp("loader"), store="resized")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 6, "world_size": 4}, "batch_size 6 cannot be shared by 4 ranks; expected a multiple of 4"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1"),
        ({"rank": 4, "world_size": 4}, "rank 4 of 4 ranks; expected a rank from 0 to below their number"),
        ({"world_size": 0}, "world_size is 0; expected a whole number from 1"),
        ({"workers": -1}, "workers is -1; expected a whole number from 0"),
        ({"split": "test"}, "no split 'test'; it has train, eval"),
        ({"max_sequences": 4}, "max_sequences with shuffle samples; expected none, as for the eval split"),
        ({"seed": 1.0}, r"seed is 1\.0; expected a whole number"),
        ({"seed": True}, "seed is True; expected a whole number"),
        ({"pack_window": 0}, "pack_window is 0; expected a whole number from 1"),
        ({"pack_window": -1}, "pack_window is -1"),
        ({"shuffle": "shards", "shuffle_window": 0}, "shuffle_window is 0"),
        ({"prefetch": 0, "workers": 1}, "prefetch is 0; expected a whole number from 1"),
        ({"max_length": None}, "max_length is None"),
        ({"max_length": "2048"}, "max_length is '2048'"),
        ({"epochs": -1}, "epochs is -1; expected a whole number from 0"),
        ({"decode": "quick"}, "decode is 'quick'; expected one of exact, fast, none"),
        ({"shuffle": "all"}, "shuffle is 'all'; expected one of samples, shards, none"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(build: Build, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ShardError, match=words):
        loader(build, **settings)


class Guest(torch.utils.data.IterableDataset[Batch]):
    """How people hand a loader to torch's DataLoader."""

    def __init__(self, ours: Loader) -> None:
        self.ours = ours

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.ours)


def test_workers_of_torchs_dataloader_are_refused_and_its_own_process_is_not(build: Build) -> None:
    def keys(batches: Iterable[Batch]) -> list[Any]:
        return [batch.samples for batch in itertools.islice(batches, 4)]

    alone = torch.utils.data.DataLoader(Guest(loader(build)), batch_size=None, num_workers=0)
    assert keys(alone) == keys(loader(build))
    shared = torch.utils.data.DataLoader(Guest(loader(build)), batch_size=None, num_workers=2)
    with pytest.raises(
        ShardError, match=r"is iterated in worker 0 of a torch DataLoader with num_workers=2.*num_workers=0"
    ):
        keys(shared)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_dataloader_directly_around_a_loader_is_refused(build: Build, workers: int) -> None:
    ours: Any = loader(build)
    around: Any = torch.utils.data.DataLoader(ours, batch_size=None, num_workers=workers)
    with pytest.raises(ShardError, match=r"its batches have no numbers; expected `for batch in loader`"):
        next(iter(around))


@pytest.mark.slow
def test_workers_that_are_not_forked_are_refused(build: Build) -> None:
    settings: dict[str, Any] = {"multiprocessing_context": "spawn", "persistent_workers": True}
    around = torch.utils.data.DataLoader(Guest(loader(build)), batch_size=None, num_workers=1, **settings)
    with pytest.raises(ShardError, match=r"cannot be sent to another process.*expected num_workers=0"):
        next(iter(around))


def test_a_loader_is_not_sent_to_another_process(build: Build) -> None:
    with pytest.raises(ShardError, match=r"cannot be sent to another process.*Loader\(workers=N\) reads ahead itself"):
        pickle.dumps(loader(build))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_torchs_dataloader_give_the_samples_of_a_split(build: Build, start: str) -> None:
    samples: Any = build["train"]
    around: Any = torch.utils.data.DataLoader(
        samples,
        batch_size=8,
        num_workers=2,
        collate_fn=list,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    for _ in range(2):
        assert [content(sample) for batch in around for sample in batch] == [content(sample) for sample in samples]


def test_an_endless_run_over_no_samples_is_refused(tmp_path: Path) -> None:
    handmade = Handmade(tmp_path)
    handmade.add([draft(1, split="eval")], split="eval")
    build = shards.open(handmade.finish())
    for shuffle in ("samples", "none"):
        with pytest.raises(ShardError, match=r"nothing to draw from the split train|the split train has no samples"):
            loader(build, shuffle=shuffle, decode="none")


def test_sequences_too_short_for_a_sample_are_refused_with_its_shard_and_key(build: Build) -> None:
    with pytest.raises(ShardError, match=r"\.tar: sample \w+-\d+ has \d+ tokens, a sequence takes 16, and \d+ more "):
        loader(build, max_length=16)
    with pytest.raises(ShardError, match=r"sample seen-\d+ has 2 images, a sequence takes 1"):
        loader(build, max_images=1)


def test_something_else_than_a_build_is_refused() -> None:
    with pytest.raises(ShardError, match=r"build is 'build'; expected what shards\.open gives"):
        Loader("build", batch_size=1, max_length=64)  # type: ignore[arg-type]


STATES = [
    ({"version": 1}, "version is 1, this program reads 2; start again"),
    ({"version": 3}, "version is 3, this program reads 2; update dsvl"),
    ({"version": None}, "version is None, this program reads 2; start again"),
    ({"manifest": "f" * 64}, "manifest is ffffffffffff, this loader has"),
    ({"seed": 3}, "seed is 3, this loader has 0"),
    ({"sequences": {"split": "eval"}}, "split is eval, this loader has train"),
    ({"sequences": None}, "split is None, this loader has train"),
    ({"cursor": -1}, "cursor of the state is -1; expected a whole number from 0"),
    ({"cursor": "5"}, "cursor of the state is '5'"),
]


@pytest.mark.parametrize(("change", "words"), STATES, ids=[words[:20] for _, words in STATES])
def test_the_state_of_another_run_is_refused(build: Build, change: dict[str, Any], words: str) -> None:
    opened = loader(build)
    before = opened.state_dict()
    with pytest.raises(ShardError, match=words):
        opened.load_state_dict({**before, **change})
    assert opened.state_dict() == before


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Build, Path, str]:
    """A build one of whose training samples has a flipped bit in an image; its shard and key."""
    folder = Path(compiled(tmp_path, store="resized").store.location)
    shard, number = next(
        (shard, number)
        for _, _, shard in shards.open(folder).shards(dataset="seen", split="train")
        for number in range(len(shard))
        if shard[number].images
    )
    entry = shard.index.entry(number)
    data = bytearray(shard.path.read_bytes())
    data[entry.offset + entry.member_offsets[2] + 200] ^= 4
    shard.path.write_bytes(data)
    return shards.open(folder), shard.path, entry.key


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_ends_the_run_with_its_shard_and_key(damaged: tuple[Build, Path, str], workers: int) -> None:
    build, path, key = damaged
    with pytest.raises(ShardError) as caught:
        list(loader(build, workers=workers, epochs=1))
    assert str(caught.value) == f"{path}: sample {key} is damaged: its bytes do not match the index's checksum"


@pytest.mark.usefixtures("no_hang")
def test_workers_that_are_killed_end_the_run_where_their_batch_is_waited_for(build: Build) -> None:
    batches = iter(loader(build, workers=2))
    next(batches)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        os.kill(child.pid or 0, signal.SIGKILL)
        wait([child.sentinel])  # the program works, and nothing disturbs it
    with pytest.raises(
        ShardError, match=r"loader: worker \d \(process \d+\) was ended by SIGKILL; .*use fewer workers"
    ):
        list(itertools.islice(batches, 100))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, workers: int) -> None:
    """The compiler lets none through; a build by another program may."""
    handmade = Handmade(tmp_path)
    info = handmade.add([draft(1, num_images=1)])
    build = shards.open(handmade.finish())
    words = rf"{info.path}: sample alpha-train-00001: an image cannot be decoded: "
    with pytest.raises(ShardError, match=words):
        some(build, 1, workers=workers)


def test_a_manifest_with_a_malformed_image_policy_is_refused_at_once(tmp_path: Path) -> None:
    build = compiled(tmp_path, store="resized")
    edit_manifest(Path(build.store.location), lambda document: document["config"]["image"].update(size=0))
    with pytest.raises(ShardError, match=r"config\.image\.size: got 0; expected a whole number from 1 on"):
        shards.open(build.store.location)
