"""Planning: runs of rows are those of a slow twin, and a task's key changes exactly with its rows and their images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.blend.config import Blend, Dataset, ShardSize
from preprocess.compiler import plan, spool
from preprocess.compiler.image_states import image_states
from preprocess.compiler.plan import assign_splits, make_context, plan_tasks
from preprocess.compiler.split_assignment import TRAIN
from preprocess.compiler.task import CompileTask
from tests.support.image_datasets import Here, about, spools_of


def runs(images: list[int], units: list[int], max_samples: int, max_images: int) -> list[list[int]]:
    """The slow twin: units are added to a run as long as both limits allow it. units: how many rows each has."""
    result: list[list[int]] = []
    row = 0
    for size in units:
        unit = list(range(row, row + size))
        row += size
        together = [*result[-1], *unit] if result else []
        if together and len(together) <= max_samples and sum(images[one] for one in together) <= max_images:
            result[-1] = together
        else:
            result.append(unit)
    return result


@given(st.data(), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_runs_of_rows_are_those_of_the_slow_twin(
    data: st.DataObject, max_samples: int, max_images: int, apart: bool
) -> None:
    units = data.draw(st.lists(st.integers(1, 1 if apart else 4), max_size=12))
    images = data.draw(st.lists(st.integers(0, 4), min_size=sum(units), max_size=sum(units)))
    blend = Blend(tokenizer="", datasets=(), shard=ShardSize(max_samples=max_samples, max_images=max_images))
    starts = None if apart else np.cumsum([0, *units])[:-1]
    cut = plan._cut(np.arange(len(images)), np.array(images, np.int32), starts, blend)
    assert [part.tolist() for part in cut] == runs(images, units, max_samples, max_images)


@given(st.lists(st.lists(st.integers(1, 2**64 - 1), max_size=3), max_size=9), st.integers(1, 4))
def test_hashes_of_rows_do_not_depend_on_blocks(rows: list[list[int]], block: int) -> None:
    values = np.array([value for row in rows for value in row], np.uint64)
    counts = np.array([len(row) for row in rows], np.int32)
    with pytest.MonkeyPatch.context() as patch:
        whole = spool._hashes([values], counts).tolist()
        patch.setattr(spool, "_BLOCK_ROWS", block)
        assert spool._hashes([values], counts).tolist() == whole
    assert [[a == b for a in whole] for b in whole] == [[a == b for a in rows] for b in rows]


def tasks_of(folder: Path, blend: Blend) -> list[CompileTask]:
    """Of one dataset with six rows about the images of the folder `x`; nothing of it is compiled."""
    dataset = blend.datasets[0]
    spools = spools_of(folder, {"x": [about(f"{number}.jpg", "all.jpg") for number in range(6)]})
    states = image_states(spools, {"x": (folder / "x",)}, folder, Here())["x"]
    context = make_context(
        blend,
        dataset,
        build=folder,
        cache=folder,
        spool=spools["x"].folder,
        images=(folder / "x",),
        tokenizer=folder / "tokenizer",
        template=("plain", ""),
        decoded=None,
    )
    return list(plan_tasks(blend, dataset, context, spools["x"], np.full(6, TRAIN, np.uint8), states))


@pytest.mark.parametrize("share", [1, 2])
def test_a_key_changes_exactly_with_the_images_of_its_rows(share: int, tmp_path: Path) -> None:
    dataset = Dataset(name="x", adapter="chat", share=share)
    blend = Blend(tokenizer="", datasets=(dataset,), shard=ShardSize(max_samples=2))
    (tmp_path / "x").mkdir()
    for number in range(5):  # the last image is missing
        (tmp_path / f"x/{number}.jpg").write_bytes(b"x")
    (tmp_path / "x/all.jpg").write_bytes(b"x")
    first = tasks_of(tmp_path, blend)
    assert [task.rows.tolist() for task in first] == [[0, 1], [2, 3], [4, 5]]
    assert len({task.key for task in first}) == 3
    assert [task.key for task in tasks_of(tmp_path, blend)] == [task.key for task in first]

    def changed() -> list[bool]:
        again = tasks_of(tmp_path, blend)
        return [one.key != other.key for one, other in zip(first, again, strict=True)]

    status = (tmp_path / "x/2.jpg").stat()
    os.utime(tmp_path / "x/2.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert changed() == [False, True, False]
    (tmp_path / "x/5.jpg").write_bytes(b"x")
    assert changed() == [False, True, True]
    (tmp_path / "x/all.jpg").write_bytes(b"longer")
    assert changed() == [True, True, True]


def test_without_an_eval_side_every_row_is_train_and_no_group_is_read(tmp_path: Path) -> None:
    spools = spools_of(tmp_path, {"x": [about("a.jpg"), about("b.jpg")], "y": [], "z": [about("c.jpg")]})
    blend = Blend(tokenizer="", datasets=tuple(Dataset(name=name, adapter="chat") for name in spools))
    assert {name: side.tolist() for name, side in assign_splits(blend, spools).items()} == {
        "x": [TRAIN, TRAIN],
        "y": [],
        "z": [TRAIN],
    }
