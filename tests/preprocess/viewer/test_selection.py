"""Which samples a gallery shows, compared with a slow obvious twin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from preprocess.errors import ConfigError
from preprocess.viewer.selection import ORDERS, PAGE, Filters, Order, Selection, find_key, place_of, read_sample
from shards import Build, ShardError
from tests.support import handmade_builds
from tests.support.handmade_builds import Handmade, branched_draft, draft


class Words:
    """Stands for a tokenizer: each id is a word."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Ninety samples in nine shards: two datasets, both splits, no to three images, 6 to 25 tokens of text."""
    made = Handmade(tmp_path_factory.mktemp("selection") / "build")
    number = 0
    for dataset, split, count in (("alpha", "train", 4), ("beta", "train", 3), ("alpha", "eval", 2)):
        for _ in range(count):
            drafts = [
                draft(each, dataset=dataset, split=split, num_images=each % 4, text=6 + each * 7 % 20)
                for each in range(number, number + 10)
            ]
            made.add(drafts, dataset=dataset, split=split)
            number += 10
    return shards.open(made.finish())


def twin(build: Build, filters: Filters) -> list[int]:
    """The samples that pass, in the order of the build."""
    passing, number = [], 0
    for split in build.splits:
        for index in range(len(build[split])):
            dataset, sample = build[split].named(index)
            images = len(sample.images)
            length = len(sample.ids) - images + images * handmade_builds.IMAGE_TOKENS
            if (
                filters.dataset in ("", dataset)
                and filters.split in ("", split)
                and filters.min_images <= images <= (99 if filters.max_images is None else filters.max_images)
                and filters.min_length <= length <= (999 if filters.max_length is None else filters.max_length)
                and filters.text in Words().decode(sample.ids.tolist())
            ):
                passing.append(number)
            number += 1
    return passing


def select(build: Build, **filters: object) -> Selection:
    return Selection(build, Words(), Filters(**filters))  # type: ignore[arg-type]


def paged(selection: Selection, *, backward: bool = False) -> Iterator[int]:
    """All samples of all pages, the pages in the direction of reading."""
    place = len(selection) if backward else 0
    while True:
        page = selection.page(place, backward=backward, budget_s=60)
        assert len(page.numbers) <= PAGE
        assert not page.is_cut
        yield from reversed(page.numbers) if backward else page.numbers
        place = page.start if backward else page.end
        if place in (0, len(selection)):
            return


filters = st.fixed_dictionaries(
    {},
    optional={
        "dataset": st.sampled_from(["alpha", "beta"]),
        "split": st.sampled_from(["train", "eval"]),
        "min_images": st.integers(0, 4),
        "max_images": st.integers(0, 4),
        "min_length": st.integers(0, 40),
        "max_length": st.integers(0, 40),
        "text": st.sampled_from(["1", "77", "5 1"]),
    },
)


@given(filters)
def test_pages_forward_and_backward_have_every_sample_that_passes_once(build: Build, asked: dict[str, object]) -> None:
    expected = twin(build, Filters(**asked))  # type: ignore[arg-type]
    selection = select(build, **asked)
    assert list(paged(selection)) == expected
    assert list(paged(selection, backward=True)) == expected[::-1]
    assert list(selection.every()) == expected
    assert sorted(paged(select(build, order="random", seed=3, **asked))) == expected


def test_orders_by_length_and_images_have_the_extremes_first(build: Build) -> None:
    every = [read_sample(build, number)[1] for number in range(len(build))]
    images = np.array([len(sample.images) for sample in every])
    lengths = np.array([len(sample.ids) for sample in every]) + images * (handmade_builds.IMAGE_TOKENS - 1)
    assert lengths[list(paged(select(build, order="longest")))].tolist() == sorted(lengths.tolist(), reverse=True)
    assert lengths[list(paged(select(build, order="shortest")))].tolist() == sorted(lengths.tolist())
    assert images[list(paged(select(build, order="most-images")))].tolist() == sorted(images.tolist(), reverse=True)
    assert set(ORDERS) == {"build", "random", "longest", "shortest", "most-images"}


def test_random_orders_differ_by_seed_and_are_the_same_again(build: Build) -> None:
    first, again, other = (list(paged(select(build, order="random", seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_search_without_time_says_how_far_it_came_and_goes_on_from_there(build: Build) -> None:
    selection = select(build, text="no such text")
    page = selection.page(0, budget_s=0)
    assert (page.numbers, page.is_cut, page.start) == ((), True, 0)
    assert 0 < page.end < len(selection)
    assert selection.page(page.end, budget_s=60).end == len(selection)


def test_a_damaged_sample_is_not_hidden_by_a_search(tmp_path: Path) -> None:
    folder = handmade_builds.make(tmp_path / "build").folder
    tar = next((folder / "shards/alpha").glob("train-00000-*.tar"))
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    found = list(select(shards.open(folder), text="no such text").every())
    assert found == [0]


@pytest.mark.parametrize(
    ("ids", "says"),
    [([1, 2, 3], "it has 0 placeholders and 1 images"), ([9, -1], "an id is outside"), ([9, 10], "an id is outside")],
)
def test_ids_that_cannot_be_shown_are_a_fault_of_their_sample(ids: list[int], says: str) -> None:
    class Damaged:
        """A build of one sample with one image."""

        splits = ("train",)
        manifest = SimpleNamespace(tokenizer=SimpleNamespace(image_id=9, num_embeddings=10))

        def __getitem__(self, split: str) -> Any:
            return self

        def __len__(self) -> int:
            return 1

        def named(self, index: int) -> tuple[str, Any]:
            return "alpha", SimpleNamespace(ids=np.array(ids, np.int32), images=[b""], where="here")

    with pytest.raises(ShardError, match=says):
        read_sample(cast(Any, Damaged()), 0)


def test_names_that_the_build_lacks_are_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match="no dataset gamma; this build has alpha, beta"):
        select(build, dataset="gamma")
    with pytest.raises(ConfigError, match="no split test; a build has train and eval"):
        select(build, split="test")
    with pytest.raises(IndexError, match="no such sample; this build has 90"):
        place_of(build, 90)


def test_a_sample_is_found_by_its_key(build: Build) -> None:
    for number in (0, 37, 89):
        assert find_key(build, read_sample(build, number)[1].key) == number
    for absent in ("", "alpha-train", "alpha-train-00000alpha", "rain-00001", "alpha-train-99999"):
        assert find_key(build, absent) is None


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=8, unique=True), st.text("ab", max_size=5))
def test_keys_are_found_in_the_joined_column_as_in_a_list(keys: list[str], sought: str) -> None:
    import pyarrow as pa

    from shards.format.index import SCHEMA, ShardIndex

    columns = {
        name: pa.array([[] if "list" in str(kind) else 0] * len(keys), kind)
        for name, kind in SCHEMA.items()
        if name != "key"
    }
    index = ShardIndex(pa.table({"key": pa.array(keys, pa.large_string()), **columns}))
    assert index.find(sought) == (keys.index(sought) if sought in keys else None)


@pytest.mark.parametrize("order", ["build", "random", "longest"])
def test_samples_with_a_number_of_records_are_found(tmp_path: Path, order: Order) -> None:
    made = Handmade(tmp_path / "build")
    for dataset, first, counts in (("alpha", 0, (1, 1, 3)), ("alpha", 3, (2, 2, 5)), ("beta", 6, (1,))):
        drafts = [branched_draft(first + row, dataset=dataset, branches=count) for row, count in enumerate(counts)]
        made.add(drafts, dataset=dataset)
    made.add([draft(number, split="eval") for number in range(2)], split="eval")
    opened = shards.open(made.finish())
    records = [len(opened[split][index].branches) for split in opened.splits for index in range(len(opened[split]))]
    for least in range(7):
        selection = Selection(opened, cast(Any, Words()), Filters(min_records=least, order=order))
        assert sorted(selection.every()) == [number for number, count in enumerate(records) if count >= least]
