"""`verify` reads every sample: each promise of the format that a sample breaks is named, with its shard and key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shards
from shards.format.index import IndexWriter, ShardIndex, open_index
from shards.format.manifest_file import read_manifest
from shards.storage.store import LocalStore
from tests.support import handmade_builds
from tests.support.handmade_builds import (
    IGNORE,
    IMAGE_ID,
    MAX_LENGTH,
    VOCABULARY_SIZE,
    Draft,
    Handmade,
    draft,
    problems,
    retoken,
)

SOUND = draft(1, num_images=2)
IDS, LABELS = SOUND.tokens


def changed(values: np.ndarray, index: int, value: int) -> np.ndarray:
    copy = values.copy()
    copy[index] = value
    return copy


def longer(draft: Draft, extra: int) -> Draft:
    return retoken(draft, np.append(IDS, np.full(extra, 11)), np.append(LABELS, np.full(extra, 11)))


FITTING = MAX_LENGTH - (len(IDS) - 2 + 2 * handmade_builds.IMAGE_TOKENS)

BROKEN: dict[str, tuple[Draft, str]] = {
    "a placeholder without image": (
        retoken(SOUND, changed(IDS, 3, IMAGE_ID), LABELS),
        "its number of <image> placeholders and images differ",
    ),
    "an image without placeholder": (
        retoken(SOUND, changed(IDS, 0, 7), LABELS),
        "its number of <image> placeholders and images differ",
    ),
    "an image without metadata": (
        replace(SOUND, metadata={**SOUND.metadata, "images": []}),
        "its number of <image> placeholders and images differ",
    ),
    "another label": (
        retoken(SOUND, IDS, changed(LABELS, -1, IDS[-1] + 1)),
        "a label is neither the token's id nor -100",
    ),
    "nothing trained": (retoken(SOUND, IDS, np.full(len(IDS), IGNORE)), "nothing in it is trained"),
    "a trained placeholder": (retoken(SOUND, IDS, changed(LABELS, 0, IMAGE_ID)), "an image placeholder is trained"),
    "too many trained": (replace(SOUND, trained_tokens=7), "its trained tokens are not as many as the index says"),
    "a negative id": (retoken(SOUND, changed(IDS, 3, -1), LABELS), "an id is outside the vocabulary"),
    "an id too high": (retoken(SOUND, changed(IDS, 3, VOCABULARY_SIZE), LABELS), "an id is outside the vocabulary"),
    "too long": (longer(SOUND, FITTING + 1), f"its length {MAX_LENGTH + 1} is over limits.max_length"),
    "too many images": (draft(1, num_images=4), "it has more images than limits.max_images"),
    "another dataset": (
        replace(SOUND, metadata={**SOUND.metadata, "dataset": "beta"}),
        "its metadata names another dataset or split",
    ),
    "another split": (
        replace(SOUND, metadata={**SOUND.metadata, "split": "eval"}),
        "its metadata names another dataset or split",
    ),
}


def build_of(folder: Path, *drafts: Draft) -> Path:
    build = Handmade(folder)
    build.add(drafts)
    return build.finish()


@pytest.mark.parametrize(("broken", "text"), BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_named_with_its_sample_and_nothing_else(tmp_path: Path, broken: Draft, text: str) -> None:
    build = build_of(tmp_path, draft(0), broken, draft(2))
    shard = read_manifest(LocalStore(build)).datasets["alpha"].shards["train"][0]
    assert problems(build) == [f"{build / shard.path}: sample {broken.key}: {text}"]


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    vocabulary = retoken(
        draft(5), changed(draft(5).tokens[0], 2, VOCABULARY_SIZE - 1), changed(draft(5).tokens[1], 2, IGNORE)
    )
    smallest = retoken(draft(6, num_images=0), [0], [0])
    assert problems(build_of(tmp_path, longer(SOUND, FITTING), draft(3, num_images=3), vocabulary, smallest)) == []


@pytest.mark.parametrize("metadata", [[], "text", None, {}, {"images": 3, "dataset": "alpha", "split": "train"}])
def test_metadata_of_another_shape_is_a_problem(tmp_path: Path, metadata: Any) -> None:
    (problem,) = problems(build_of(tmp_path, replace(SOUND, metadata=metadata)))
    assert "alpha/train-00000" in problem


def test_an_image_or_video_on_both_sides_of_the_split_is_found(tmp_path: Path) -> None:
    build = Handmade(tmp_path)
    build.add([replace(draft(1), groups=("coco:1", "coco:2"))])
    build.add([replace(draft(2, dataset="beta"), groups=("coco:3",))], dataset="beta")
    build.add([replace(draft(3, split="eval"), groups=("coco:4", "coco:2"))], split="eval")
    (problem,) = problems(build.finish())
    assert problem.endswith("1 groups are in eval too, such as coco:2")
    assert "alpha/train-00000" in problem


def test_the_same_image_under_other_names_on_both_sides_is_a_note(tmp_path: Path) -> None:
    def showing(number: int, split: str, *images: bytes) -> Draft:
        sample = draft(number, split=split, num_images=len(images))
        return replace(sample, images=tuple(("jpg", handmade_builds.JPEG + image) for image in images))

    build = Handmade(tmp_path)
    build.add([showing(1, "train", b"a", b"b"), showing(2, "train", b"c")])
    build.add([draft(3, dataset="beta", num_images=0)], dataset="beta")
    build.add(
        [replace(showing(4, "train", b"d"), key="beta-4", metadata={**draft(4).metadata, "dataset": "beta"})],
        dataset="beta",
    )
    build.add([showing(5, "eval", b"x"), showing(6, "eval", b"b", b"y", b"d"), showing(7, "eval", b"d")], split="eval")
    build.add([showing(8, "eval", b"z")], split="eval")
    build.add([draft(9, split="eval", num_images=0)], split="eval")
    verification = shards.verify(shards.open(build.finish()))
    assert verification.problems == []
    (note,) = verification.notes
    assert note.endswith("images that are in train too, byte for byte: 2, such as in sample alpha-eval-00006")
    assert "alpha/eval-00000" in note


def test_equal_metadata_or_tokens_on_both_sides_give_no_note(tmp_path: Path) -> None:
    build = Handmade(tmp_path)
    build.add([draft(1, num_images=0)])
    build.add(
        [replace(draft(1, num_images=0, split="eval"), metadata=draft(1, num_images=0, split="eval").metadata)],
        split="eval",
    )
    assert shards.verify(shards.open(build.finish())).notes == []


def test_an_index_with_broken_text_is_a_problem_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Handmade(tmp_path)
    build.add([draft(1), draft(2)])
    build.finish()
    monkeypatch.setattr("shards.format.shard.open_index", broken_groups(open_index))
    (problem,) = problems(tmp_path)
    assert "its index shards/alpha/train-00000" in problem
    assert "is damaged" in problem


def broken_groups(open_whole: Callable[[Path], ShardIndex]) -> Callable[[Path], ShardIndex]:
    """The same index, but its groups are bytes that are no UTF-8."""

    def open_broken(path: Path) -> ShardIndex:
        table = open_whole(path).table
        column = table.schema.get_field_index("groups")
        bad = pa.array([[b"\xff"]] * table.num_rows, pa.large_list(pa.large_binary())).view(
            table.schema.field(column).type
        )
        return ShardIndex(table.set_column(column, table.schema.field(column), bad))

    return open_broken


def test_a_key_that_is_in_two_shards_is_found(tmp_path: Path) -> None:
    build = Handmade(tmp_path)
    build.add([draft(1), draft(2)])
    build.add([draft(3), draft(2)])
    both = problems(build.finish())
    assert all(problem.endswith("1 keys are elsewhere too, such as alpha-train-00002") for problem in both)
    assert [f"alpha/train-0000{number}" in problem for number, problem in enumerate(both)] == [True, True]


def test_member_checksums_that_do_not_fit_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = IndexWriter.add
    monkeypatch.setattr(
        IndexWriter, "add", lambda index, **entry: add(index, **(entry | {"member_checksums": [1, 2, 3, 4]}))
    )
    build = build_of(tmp_path, SOUND)
    (problem,) = problems(build)
    assert problem.endswith(f"sample {SOUND.key}: its members do not match the index's checksums")


def test_a_tar_with_more_in_it_than_its_index_says_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = handmade_builds.write_shard(tmp_path / "whole", [draft(0), draft(1)])
    part = handmade_builds.write_shard(tmp_path / "part", [draft(0)])
    assert whole is not None
    assert part is not None
    build = Handmade(tmp_path / "build")
    mixed = replace(part, path=whole.path, size=whole.size, sha256=whole.sha256)
    for source, name in [(tmp_path / "whole", whole.path), (tmp_path / "part", part.index)]:
        (build.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, build.folder / name)
    build.shards["alpha"] = {"train": [mixed], "eval": []}
    lines = problems(build.finish())
    assert [text.partition(": ")[2].partition(",")[0] for text in lines] == [
        f"{whole.size} bytes",
        "its tar members are not those of the index",
    ]
