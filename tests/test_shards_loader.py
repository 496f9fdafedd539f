"""Batches: what is in them, and that nothing but the build, the seed and the row settings decides it."""

from __future__ import annotations

import copy
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import shards
from handmade_builds import Handmade, draft
from shards import Build, ShardError
from shards.batch import Batch, normalize
from shards.decode import decode_pillow
from shards.loader import Loader
from shards.manifest import manifest_hash, manifest_text
from shards.pixels import Geometry
from small_blends import build as compile_blend
from small_blends import chat_record, write_blend, write_chat, write_images

IMAGE_TOKENS = 4
SIDE = 32
LENGTH = 128
BATCH = 24  # divisible by 1, 2, 3, 4 and 8 ranks

CONFIG = {
    "image_tokens": 4,
    "limits": {"max_length": 64, "max_images": 3},
    "image": {"size": 32, "fit": "crop", "pad_colour": "clip", "interpolation": "bicubic", "max_pixels": 10**6},
}
WORLDS = [(ranks, workers) for ranks in (1, 2, 3, 4, 8) for workers in (0, 1, 4)]


def compiled(folder: Path, **image: Any) -> Build:
    """Two datasets, one drawn 2.5 times an epoch: text alone, and with up to two pictures; some held out."""
    names = write_images(folder / "seen", 30)
    write_chat(
        folder / "seen",
        [
            chat_record(number, images=names[number : number + number % 3], rounds=1 + number % 2)
            for number in range(30)
        ],
    )
    write_chat(folder / "text", [chat_record(number, rounds=1 + number % 4) for number in range(20)])
    blend = write_blend(
        folder / "blend.yaml",
        [
            {"name": "seen", "adapter": "chat", "root": "seen", "samples": "all"},
            {"name": "text", "adapter": "chat", "root": "text", "epochs": 2.5},
        ],
        image_tokens=IMAGE_TOKENS,
        limits={"max_length": LENGTH},
        image={"size": SIDE, **image},
        split={"eval": 0.25},
        shard={"max_samples": 8},
    )
    return shards.open(compile_blend(blend).path)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return compiled(tmp_path_factory.mktemp("loader"), store="resized")


def loader(build: Build, **settings: Any) -> Loader:
    return Loader(build, **{"batch_size": BATCH, "max_length": LENGTH, **settings})


def some(build: Build, count: int, **settings: Any) -> list[Batch]:
    batches = iter(loader(build, **settings))
    return [next(batches) for _ in range(count)]


def said(batches: list[Batch]) -> list[tuple[Any, ...]]:
    """All rows of a global batch, whichever ranks hold them, as plain values; images with the rows they belong to."""
    rows = []
    for batch in batches:
        for row in range(len(batch.input_ids)):
            mine = batch.image_slots[:, 0] == row
            tensors = (batch.input_ids, batch.labels, batch.position_ids, batch.segment_ids)
            rows.append(
                (
                    batch.samples[row],
                    *(tensor[row].tolist() for tensor in tensors),
                    batch.image_slots[mine, 1].tolist(),
                    batch.images[mine].tolist(),
                )
            )
    return rows


@pytest.fixture(scope="module")
def wanted(build: Build) -> list[list[tuple[Any, ...]]]:
    """The first global batches, of one rank without workers."""
    return [said([batch]) for batch in some(build, 5)]


# What is in a batch


def test_a_batch_holds_its_samples_as_the_build_does(build: Build) -> None:
    by_key = {sample.key: sample for sample in build["train"]}
    geometry = Geometry.of(build.manifest.content["config"]["image"])
    image_id = build.manifest.content["tokenizer"]["image_id"]
    (batch,) = some(build, 1)
    assert batch.input_ids.shape == (BATCH, LENGTH)
    assert batch.images.shape == (len(batch.image_slots), 3, SIDE, SIDE)
    seen = 0
    for row, names in enumerate(batch.samples):
        for segment, (dataset, key) in enumerate(names, start=1):
            sample = by_key[key]
            assert sample.metadata["dataset"] == dataset
            mine = batch.segment_ids[row] == segment
            ids, labels = [], []
            for token, label in zip(sample.ids.tolist(), sample.labels.tolist(), strict=True):
                ids += [token] * (IMAGE_TOKENS if token == image_id else 1)
                labels += [label] * (IMAGE_TOKENS if token == image_id else 1)
            assert batch.input_ids[row][mine].tolist() == ids
            assert batch.labels[row][mine].tolist() == [-100, *labels[1:]]
            assert batch.position_ids[row][mine].tolist() == list(range(len(ids)))
            start = int(mine.nonzero()[0])
            for image in sample.images:
                at_row, at = batch.image_slots[seen].tolist()
                assert at_row == row
                assert start <= at < start + len(ids)
                assert (batch.input_ids[row, at : at + IMAGE_TOKENS] == image_id).all()
                pixels = batch.images[seen]
                assert np.array_equal(pixels.permute(1, 2, 0).numpy(), decode_pillow(image, geometry))
                seen += 1
    assert seen == len(batch.images) > 0
    padding = batch.segment_ids == 0
    assert (batch.labels[padding] == -100).all()
    assert (batch.input_ids[padding] == 0).all()


def test_images_have_channels_first_in_shape_and_last_in_memory(build: Build) -> None:
    for workers in (0, 1):
        (batch,) = some(build, 1, workers=workers)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_original_pictures_are_made_as_the_encoder_wants_them(tmp_path: Path) -> None:
    original = compiled(tmp_path, store="original")
    geometry = Geometry.of(original.manifest.content["config"]["image"])
    by_key = {sample.key: sample for sample in original["train"]}
    for decode, tolerance in (("exact", 0.0), ("fast", 1.5)):
        (batch,) = some(original, 1, decode=decode)
        stored = [image for row in batch.samples for _, key in row for image in by_key[key].images]
        for pixels, image in zip(batch.images, stored, strict=True):
            difference = pixels.permute(1, 2, 0).numpy().astype(float) - decode_pillow(image, geometry)
            assert np.abs(difference).mean() <= tolerance


def test_without_decoding_a_batch_holds_the_stored_files(build: Build) -> None:
    by_key = {sample.key: sample for sample in build["train"]}
    for workers in (0, 1):
        (batch,) = some(build, 1, decode="none", workers=workers)
        stored = tuple(bytes(image) for row in batch.samples for _, key in row for image in by_key[key].images)
        assert batch.stored_images == stored
        assert batch.images.shape == (0, 3, SIDE, SIDE)


def test_stored_files_stay_when_the_rest_of_their_batch_goes_to_shared_memory(build: Build) -> None:
    batches = iter(loader(build, decode="none"))
    kept = next(batches)
    wanted = [bytes(image) for image in kept.stored_images]
    for name in ("input_ids", "labels", "position_ids", "segment_ids", "images", "image_slots"):
        getattr(kept, name).share_memory_()
    for _ in range(5):
        next(batches)
    assert [bytes(image) for image in kept.stored_images] == wanted


def test_unpacked_rows_hold_a_sample_each_and_are_as_long_as_the_longest(build: Build) -> None:
    for batch in some(build, 3, packed=False):
        assert {len(row) for row in batch.samples} == {1}
        longest = int((batch.segment_ids > 0).sum(1).max())
        assert longest <= batch.input_ids.shape[1] < longest + 8
        assert batch.input_ids.shape[1] % 8 == 0


def test_normalize_gives_the_encoders_numbers() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    slow = [[(images[n, c].double() / 255 - mean[c]) / std[c] for c in range(3)] for n in range(2)]
    wanted = torch.stack([torch.stack(image) for image in slow])
    assert torch.allclose(normalize(images, mean, std).double(), wanted, atol=1e-5)
    assert normalize(images, mean, std, torch.bfloat16).dtype == torch.bfloat16
    assert images.dtype == torch.uint8


def test_a_batch_moves_as_a_whole(build: Build) -> None:
    (batch,) = some(build, 1)
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.images.device.type} == {"meta"}
    assert (moved.samples, moved.position) == (batch.samples, batch.position)


# Nothing else decides


@pytest.mark.parametrize(("ranks", "workers"), WORLDS)
def test_global_batches_are_the_same_for_any_ranks_and_workers(
    build: Build, wanted: list[list[tuple[Any, ...]]], ranks: int, workers: int
) -> None:
    parts = [some(build, 3, rank=rank, world_size=ranks, workers=workers) for rank in range(ranks)]
    for step in range(3):
        assert said([part[step] for part in parts]) == wanted[step]
        assert len({part[step].position for part in parts}) == 1


def test_a_run_stopped_at_any_step_goes_on_the_same_on_other_ranks(
    build: Build, wanted: list[list[tuple[Any, ...]]]
) -> None:
    for stop in range(5):
        first = loader(build, workers=stop % 2)
        for _, batch in zip(range(stop), first, strict=False):
            assert isinstance(batch, Batch)
        state = json.loads(json.dumps(first.state_dict()))
        for ranks in (2, 8):
            parts = []
            for rank in range(ranks):
                again = loader(build, rank=rank, world_size=ranks)
                again.load_state_dict(state)
                parts.append([batch for _, batch in zip(range(5 - stop), again, strict=False)])
            for step in range(5 - stop):
                assert said([part[step] for part in parts]) == wanted[stop + step]


def test_the_state_is_that_of_the_last_batch_given_whatever_workers_have_made_ahead(build: Build) -> None:
    ahead, alone = loader(build, workers=2, prefetch=4), loader(build)
    for one, other in zip(range(4), zip(ahead, alone, strict=False), strict=False):
        assert one >= 0
        assert ahead.state_dict() == alone.state_dict() == {**alone.state_dict(), "position": other[0].position}


def test_another_batch_size_takes_the_same_rows(build: Build, wanted: list[list[tuple[Any, ...]]]) -> None:
    rows = [row for batch in wanted for row in batch]
    small = [row for batch in some(build, 10, batch_size=7) for row in said([batch])]
    assert small == rows[:70]


def test_a_seed_of_numpy_is_the_same_number(build: Build, wanted: list[list[tuple[Any, ...]]]) -> None:
    assert said(some(build, 1, seed=np.int64(0))) == wanted[0]
    assert loader(build, seed=np.int64(3)).state_dict() == loader(build, seed=3).state_dict()


def test_reading_batches_draws_nothing_from_the_programs_own_randomness(build: Build) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        some(build, 2, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_unpacked_batches_have_the_same_width_on_every_rank(build: Build) -> None:
    whole = [batch.input_ids.shape[1] for batch in some(build, 3, packed=False)]
    for rank in range(8):
        assert [batch.input_ids.shape[1] for batch in some(build, 3, packed=False, rank=rank, world_size=8)] == whole
    last = list(loader(build, split="eval", batch_size=8, packed=False, rank=7, world_size=8))[-1]
    assert last.input_ids.shape[1] >= 8


def test_shards_are_shuffled_among_each_other(build: Build) -> None:
    """Eight of the largest: neighbouring positions come from several shards."""
    order = loader(build, shuffle="shards")._order
    met = {build["train"].locate(int(sample))[0] for sample in order.samples(0, 0, 16)}
    assert len(met) > 3


def test_seeds_and_shuffles_give_other_orders(build: Build) -> None:
    first = [
        tuple(row for batch in some(build, 4, **settings) for row in batch.samples)
        for settings in ({}, {"seed": 1}, {"shuffle": "shards"}, {"shuffle": "none"})
    ]
    assert len(set(first)) == 4


def test_an_epoch_of_training_draws_what_the_manifest_says(build: Build) -> None:
    counts: dict[str, int] = {}
    for batch in loader(build, epochs=1):
        for row in batch.samples:
            for dataset, _ in row:
                counts[dataset] = counts.get(dataset, 0) + 1
    assert counts == {name: dataset["draws"] for name, dataset in build.manifest.content["datasets"].items()}


def test_the_rows_of_some_epochs_can_be_counted_before_they_are_read(build: Build) -> None:
    for packed in (True, False):
        given = loader(build, epochs=2, batch_size=1, packed=packed)
        assert given.count_rows(2) == len(list(given)) > given.count_rows(1) > given.count_rows(0) == 0


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_evaluation_shows_every_sample_once_and_every_rank_the_same_number_of_batches(build: Build, ranks: int) -> None:
    parts = [list(loader(build, split="eval", batch_size=8, rank=rank, world_size=ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    keys = [key for part in parts for batch in part for row in batch.samples for _, key in row]
    assert sorted(keys) == sorted(sample.key for sample in build["eval"])
    assert {len(batch.input_ids) for part in parts for batch in part} == {8 // ranks}


def test_an_evaluation_begins_anew_each_time_and_training_goes_on(build: Build) -> None:
    held_out = loader(build, split="eval", batch_size=4)
    first = [said([batch]) for batch in held_out]
    assert len(first) > 1
    next(iter(held_out))
    assert [said([batch]) for batch in held_out] == first
    half = loader(build, split="eval", batch_size=4)
    next(iter(half))
    again = loader(build, split="eval", batch_size=4)
    again.load_state_dict(half.state_dict())
    assert [said([batch]) for batch in again] == first[1:]
    training = loader(build, epochs=1)
    assert list(training)
    assert list(training) == []


def test_a_reader_travels_to_a_process_that_shares_no_memory(build: Build) -> None:
    loader_ = loader(build)
    part = next(iter(loader_._plan()))
    one, other = (
        Batch.of(*reader.fill(part, lambda size: np.empty(size, np.uint8)))
        for reader in (pickle.loads(pickle.dumps(loader_._reader)), loader_._reader)
    )
    assert said([one]) == said([other])


def test_pinned_batches_are_the_same_in_other_memory(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory needs a CUDA device; a copy stands in for it."""
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: batch._each(torch.Tensor.clone))
    for workers in (0, 1):
        wanted = [said([batch]) for batch in loader(build, epochs=1)]
        assert [said([batch]) for batch in loader(build, epochs=1, workers=workers, pin_memory=True)] == wanted


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 6, "world_size": 4}, "batch_size 6 cannot be shared by 4 ranks; wanted a multiple of 4"),
        ({"batch_size": 0}, "batch_size is 0; wanted a whole number from 1"),
        ({"rank": 4, "world_size": 4}, "rank 4 of 4 ranks; wanted a rank from 0 to below their number"),
        ({"world_size": 0}, "world_size is 0; wanted a whole number from 1"),
        ({"workers": -1}, "workers is -1; wanted a whole number from 0"),
        ({"split": "test"}, "no split 'test'; it has train, eval"),
        ({"seed": 1.0}, r"seed is 1\.0; wanted a whole number"),
        ({"seed": True}, "seed is True; wanted a whole number"),
        ({"pack_window": 0}, "pack_window is 0; wanted a whole number from 1"),
        ({"pack_window": -1}, "pack_window is -1"),
        ({"shuffle": "shards", "shuffle_window": 0}, "shuffle_window is 0"),
        ({"prefetch": 0, "workers": 1}, "prefetch is 0; wanted a whole number from 1"),
        ({"max_length": None}, "max_length is None"),
        ({"max_length": "2048"}, "max_length is '2048'"),
        ({"epochs": -1}, "epochs is -1; wanted a whole number from 0"),
        ({"decode": "quick"}, "decode is 'quick'; wanted one of exact, fast, none"),
        ({"shuffle": "all"}, "shuffle is 'all'; wanted one of samples, shards, none"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(build: Build, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ShardError, match=words):
        loader(build, **settings)


def test_an_endless_run_over_no_samples_is_refused(tmp_path: Path) -> None:
    handmade = Handmade(tmp_path, extra={"config": {**CONFIG, "datasets": [{"name": "alpha"}]}})
    handmade.add([draft(1, split="eval")], split="eval")
    build = shards.open(handmade.finish())
    for shuffle in ("samples", "none"):
        with pytest.raises(ShardError, match=r"nothing to draw from the split train|the split train has no samples"):
            loader(build, shuffle=shuffle, decode="none")


def test_rows_too_short_for_a_sample_are_refused_with_its_shard_and_key(build: Build) -> None:
    with pytest.raises(ShardError, match=r"\.tar: sample \w+-\d+ has \d+ positions, a row takes 16, and \d+ more "):
        loader(build, max_length=16)
    with pytest.raises(ShardError, match=r"sample seen-\d+ has 2 images, a row takes 1"):
        loader(build, max_images=1)


def test_something_else_than_a_build_is_refused() -> None:
    with pytest.raises(ShardError, match=r"build is 'build'; wanted what shards\.open gives"):
        Loader("build", batch_size=1, max_length=64)  # type: ignore[arg-type]


STATES = [
    ({"version": 2}, "version is 2, this program reads 1; update dsvl"),
    ({"version": None}, "version is None, this program reads 1; start anew"),
    ({"manifest": "f" * 64}, "manifest is ffffffffffff, this loader has"),
    ({"seed": 3}, "seed is 3, this loader has 0"),
    ({"rows": {"split": "eval"}}, "split is eval, this loader has train"),
    ({"rows": None}, "split is None, this loader has train"),
    ({"position": -1}, "position of the state is -1; wanted a whole number from 0"),
    ({"position": "5"}, "position of the state is '5'"),
]


@pytest.mark.parametrize(("change", "words"), STATES, ids=[words[:20] for _, words in STATES])
def test_the_state_of_another_run_is_refused(build: Build, change: dict[str, Any], words: str) -> None:
    one = loader(build)
    before = one.state_dict()
    with pytest.raises(ShardError, match=words):
        one.load_state_dict({**before, **change})
    assert one.state_dict() == before


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Build, Path, str]:
    """A build one of whose training samples has a flipped bit in a picture; its shard and key."""
    folder = Path(compiled(tmp_path, store="resized").store.location)
    shard, row = next(
        (shard, row)
        for _, _, shard in shards.open(folder).shards(dataset="seen", split="train")
        for row in range(len(shard))
        if shard[row].images
    )
    at = shard.index.row(row)
    data = bytearray(shard.path.read_bytes())
    data[at.offset + at.member_offsets[2] + 200] ^= 4
    shard.path.write_bytes(data)
    return shards.open(folder), shard.path, at.key


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
    time.sleep(0.2)  # the program works, and nothing disturbs it
    with pytest.raises(
        ShardError, match=r"loader: worker \d \(process \d+\) was ended by SIGKILL; .*use fewer workers"
    ):
        list(itertools.islice(batches, 100))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path, workers: int) -> None:
    """The compiler lets none through; a build by another program may."""
    handmade = Handmade(tmp_path, extra={"config": {**CONFIG, "datasets": [{"name": "alpha"}]}})
    info = handmade.add([draft(1, num_images=1)])
    build = shards.open(handmade.finish())
    words = rf"{info.path}: sample alpha-train-00001: an image cannot be decoded: "
    with pytest.raises(ShardError, match=words):
        some(build, 1, workers=workers)


def test_a_manifest_with_a_malformed_image_policy_is_refused_at_once(tmp_path: Path) -> None:
    build = compiled(tmp_path, store="resized")
    content = copy.deepcopy(dict(build.manifest.content))
    content["config"]["image"]["size"] = 0
    content["hash"] = manifest_hash(content)
    (Path(build.store.location) / "manifest.json").write_bytes(manifest_text(content))
    with pytest.raises(ShardError, match=r"config\.image\.size"):
        loader(shards.open(build.store.location))
