"""Batches: what is in them, and that nothing but the build, the seed and the sequence settings decides it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards import Build
from shards.images.decode import decode_pillow
from shards.loader.batch import Batch, normalize
from tests.support.loader_builds import BATCH, IMAGE_TOKENS, LENGTH, SIDE, compiled, loader, said, some

WORLDS = [(ranks, workers) for ranks in (1, 2, 3, 4, 8) for workers in (0, 1, 4)]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return compiled(tmp_path_factory.mktemp("loader"), store="resized")


@pytest.fixture(scope="module")
def first_batches(build: Build) -> list[list[tuple[Any, ...]]]:
    """The first global batches, of one rank without workers."""
    return [said([batch]) for batch in some(build, 5)]


# What is in a batch


def test_a_batch_holds_its_samples_as_the_build_does(build: Build) -> None:
    by_key = {sample.key: sample for sample in build["train"]}
    geometry = build.manifest.config.image
    image_id = build.manifest.tokenizer.image_id
    (batch,) = some(build, 1)
    assert batch.input_ids.shape == (BATCH, LENGTH)
    assert batch.images.shape == (len(batch.image_slots), 3, SIDE, SIDE)
    seen = 0
    for sequence, names in enumerate(batch.samples):
        for segment, (dataset, key) in enumerate(names, start=1):
            sample = by_key[key]
            assert sample.metadata["dataset"] == dataset
            mine = batch.segment_ids[sequence] == segment
            ids, labels = [], []
            for token, label in zip(sample.ids.tolist(), sample.labels.tolist(), strict=True):
                ids += [token] * (IMAGE_TOKENS if token == image_id else 1)
                labels += [label] * (IMAGE_TOKENS if token == image_id else 1)
            assert batch.input_ids[sequence][mine].tolist() == ids
            assert batch.labels[sequence][mine].tolist() == [-100, *labels[1:]]
            assert batch.position_ids[sequence][mine].tolist() == list(range(len(ids)))
            start = int(mine.nonzero()[0])
            for image in sample.images:
                in_sequence, first_token = batch.image_slots[seen].tolist()
                assert in_sequence == sequence
                assert start <= first_token < start + len(ids)
                assert (batch.input_ids[sequence, first_token : first_token + IMAGE_TOKENS] == image_id).all()
                pixels = batch.images[seen]
                assert np.array_equal(pixels.permute(1, 2, 0).numpy(), decode_pillow(image, geometry)[0])
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


def test_original_images_are_made_as_the_encoder_wants_them(tmp_path: Path) -> None:
    original = compiled(tmp_path, store="original")
    geometry = original.manifest.config.image
    by_key = {sample.key: sample for sample in original["train"]}
    for decode, tolerance in (("exact", 0.0), ("fast", 1.5)):
        (batch,) = some(original, 1, decode=decode)
        stored = [image for sequence in batch.samples for _, key in sequence for image in by_key[key].images]
        for pixels, image in zip(batch.images, stored, strict=True):
            difference = pixels.permute(1, 2, 0).numpy().astype(float) - decode_pillow(image, geometry)[0]
            assert np.abs(difference).mean() <= tolerance


def test_without_decoding_a_batch_holds_the_stored_files(build: Build) -> None:
    by_key = {sample.key: sample for sample in build["train"]}
    for workers in (0, 1):
        (batch,) = some(build, 1, decode="none", workers=workers)
        stored = tuple(
            bytes(image) for sequence in batch.samples for _, key in sequence for image in by_key[key].images
        )
        assert batch.stored_images == stored
        assert batch.images.shape == (0, 3, SIDE, SIDE)


def test_stored_files_stay_when_the_rest_of_their_batch_goes_to_shared_memory(build: Build) -> None:
    batches = iter(loader(build, decode="none"))
    kept = next(batches)
    expected = [bytes(image) for image in kept.stored_images]
    for name in ("input_ids", "labels", "position_ids", "segment_ids", "images", "image_slots"):
        getattr(kept, name).share_memory_()
    for _ in range(5):
        next(batches)
    assert [bytes(image) for image in kept.stored_images] == expected


def test_unpacked_sequences_hold_a_sample_each_and_are_as_long_as_the_longest(build: Build) -> None:
    for batch in some(build, 3, packed=False):
        assert {len(sequence) for sequence in batch.samples} == {1}
        longest = int((batch.segment_ids > 0).sum(1).max())
        assert longest <= batch.input_ids.shape[1] < longest + 8
        assert batch.input_ids.shape[1] % 8 == 0


def test_normalize_gives_the_encoders_numbers() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    slow = [[(images[n, c].double() / 255 - mean[c]) / std[c] for c in range(3)] for n in range(2)]
    expected = torch.stack([torch.stack(image) for image in slow])
    assert torch.allclose(normalize(images, mean, std).double(), expected, atol=1e-5)
    assert normalize(images, mean, std, torch.bfloat16).dtype == torch.bfloat16
    assert images.dtype == torch.uint8


def test_a_batch_moves_as_a_whole(build: Build) -> None:
    (batch,) = some(build, 1)
    moved = batch.to("meta")
    assert {moved.input_ids.device.type, moved.images.device.type} == {"meta"}
    assert (moved.samples, moved.cursor) == (batch.samples, batch.cursor)


# Nothing else decides


@pytest.mark.parametrize(("ranks", "workers"), WORLDS)
def test_global_batches_are_the_same_for_any_ranks_and_workers(
    build: Build, first_batches: list[list[tuple[Any, ...]]], ranks: int, workers: int
) -> None:
    parts = [some(build, 3, rank=rank, world_size=ranks, workers=workers) for rank in range(ranks)]
    for step in range(3):
        assert said([part[step] for part in parts]) == first_batches[step]
        assert len({part[step].cursor for part in parts}) == 1


def test_a_run_stopped_at_any_step_resumes_the_same_on_other_ranks(
    build: Build, first_batches: list[list[tuple[Any, ...]]]
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
                assert said([part[step] for part in parts]) == first_batches[stop + step]


def test_the_state_is_that_of_the_last_batch_given_whatever_workers_have_made_ahead(build: Build) -> None:
    ahead, alone = loader(build, workers=2, prefetch=4), loader(build)
    for number, other in zip(range(4), zip(ahead, alone, strict=False), strict=False):
        assert number >= 0
        assert ahead.state_dict() == alone.state_dict() == {**alone.state_dict(), "cursor": other[0].cursor}


def test_another_batch_size_takes_the_same_sequences(build: Build, first_batches: list[list[tuple[Any, ...]]]) -> None:
    sequences = [sequence for batch in first_batches for sequence in batch]
    small = [sequence for batch in some(build, 10, batch_size=7) for sequence in said([batch])]
    assert small == sequences[:70]


def test_a_seed_of_numpy_is_the_same_number(build: Build, first_batches: list[list[tuple[Any, ...]]]) -> None:
    assert said(some(build, 1, seed=np.int64(0))) == first_batches[0]
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
        tuple(sequence for batch in some(build, 4, **settings) for sequence in batch.samples)
        for settings in ({}, {"seed": 1}, {"shuffle": "shards"}, {"shuffle": "none"})
    ]
    assert len(set(first)) == 4


def test_an_epoch_of_training_draws_what_the_manifest_says(build: Build) -> None:
    counts: dict[str, int] = {}
    for batch in loader(build, epochs=1):
        for sequence in batch.samples:
            for dataset, _ in sequence:
                counts[dataset] = counts.get(dataset, 0) + 1
    assert counts == {name: dataset.draws for name, dataset in build.manifest.datasets.items()}


@pytest.mark.parametrize("packed", [True, False])
def test_a_cursor_says_how_many_epochs_were_given_out(build: Build, packed: bool) -> None:
    batches, samples = loader(build, epochs=3, batch_size=2, packed=packed), 0
    assert batches.epochs_before(0) == 0
    for batch in batches:
        samples += sum(map(len, batch.samples))
        assert batches.epochs_before(batches.state_dict()["cursor"]) == pytest.approx(samples / batches.epoch_length)


def test_the_sequences_of_some_epochs_can_be_counted_before_they_are_read(build: Build) -> None:
    for packed in (True, False):
        batches = loader(build, epochs=2, batch_size=1, packed=packed)
        counts = [batches.count_sequences(epochs) for epochs in range(3)]
        assert counts[2] == len(list(batches)) > counts[1] > counts[0] == 0


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_evaluation_shows_every_sample_once_and_every_rank_the_same_number_of_batches(build: Build, ranks: int) -> None:
    parts = [list(loader(build, split="eval", batch_size=8, rank=rank, world_size=ranks)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    keys = [key for part in parts for batch in part for sequence in batch.samples for _, key in sequence]
    assert sorted(keys) == sorted(sample.key for sample in build["eval"])
    assert {len(batch.input_ids) for part in parts for batch in part} == {8 // ranks}


@pytest.mark.parametrize("packed", [False, True])
def test_a_short_evaluation_shows_all_datasets_and_is_the_same_for_all_ranks(build: Build, packed: bool) -> None:
    settings = {"split": "eval", "batch_size": 2, "max_sequences": 2, "packed": packed}
    (batch,) = loader(build, **settings)
    shown = [name for sequence in batch.samples for name in sequence]
    assert {dataset for dataset, _ in shown} == {"seen", "text"}
    assert len({key for _, key in shown}) == len(shown) < len(build["eval"])
    parts = [list(loader(build, **settings, rank=rank, world_size=2)) for rank in range(2)]
    assert [name for (part,) in parts for sequence in part.samples for name in sequence] == shown


def test_an_evaluation_begins_again_each_time_and_training_continues(build: Build) -> None:
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
    part = next(iter(loader_._requests()))
    first, second = (
        Batch.of(*reader.fill(part, lambda size: np.empty(size, np.uint8)))
        for reader in (pickle.loads(pickle.dumps(loader_._reader)), loader_._reader)
    )
    assert said([first]) == said([second])


def test_pinned_batches_are_the_same_in_other_memory(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory needs a CUDA device; a copy replaces it."""
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: batch._each(torch.Tensor.clone))
    for workers in (0, 1):
        expected = [said([batch]) for batch in loader(build, epochs=1)]
        assert [said([batch]) for batch in loader(build, epochs=1, workers=workers, pin_memory=True)] == expected
