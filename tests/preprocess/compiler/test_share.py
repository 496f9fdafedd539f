"""`share`: records about the same images as branches of one sample, compared with a build without it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shards
from preprocess.blend.load import load_blend
from preprocess.compiler.share import image_units
from preprocess.errors import ConfigError
from tests.support.shared_builds import question_blend, records_of, samples_of
from tests.support.small_blends import (
    SAMPLES,
    build,
    chat_blend,
    chat_record,
    files_of,
    image_blend,
    jpeg,
    rejects_of,
    write_blend,
    write_images,
)

INTERLEAVED = {2: 3, 0: 5, 1: 1, 3: 7}
"""How many records ask about each image"""


def test_every_record_of_a_shared_sample_has_the_tokens_and_images_that_it_has_alone(tmp_path: Path) -> None:
    build(question_blend(tmp_path / "shared", INTERLEAVED, split={"eval": 0.3}, seed=1))
    build(question_blend(tmp_path / "alone", INTERLEAVED, share=1, split={"eval": 0.3}, seed=1))
    shared, alone = records_of(tmp_path / "shared/build"), records_of(tmp_path / "alone/build")
    assert {name: record._replace(sample="") for name, record in shared.items()} == {
        name: record._replace(sample="") for name, record in alone.items()
    }
    assert len(shared) == 16
    assert {record.split for record in shared.values()} == {"train", "eval"}


def test_adapters_that_make_several_records_of_an_image_profit_and_change_no_record(tmp_path: Path) -> None:
    adapters: dict[str, dict[str, Any]] = {
        "vqa_v2": {},
        "aokvqa": {},
        "coco_caption": {},
        "ocr_vqa": {"options": {"questions": "apart"}},
    }
    for folder, share in (("apart", 1), ("shared", 8)):
        (tmp_path / folder).mkdir()
        datasets = [
            {"name": name, "adapter": name, "root": str(SAMPLES), "split": "train", "share": share, **more}
            for name, more in adapters.items()
        ]
        build(write_blend(tmp_path / folder / "blend.yaml", datasets))
    apart, shared = (records_of(tmp_path / folder / "build") for folder in ("apart", "shared"))
    assert {name: record._replace(sample="") for name, record in shared.items()} == {
        name: record._replace(sample="") for name, record in apart.items()
    }
    profits = {
        name: info.samples < info.members
        for name, info in shards.open(tmp_path / "shared/build").manifest.datasets.items()
    }
    assert profits == {"vqa_v2": True, "aokvqa": False, "coco_caption": True, "ocr_vqa": True}


def test_up_to_k_records_share_a_sample_in_their_own_order(tmp_path: Path) -> None:
    report = build(question_blend(tmp_path, INTERLEAVED)).datasets["mine"]
    built = samples_of(tmp_path / "build")
    counts = [len(sample.branches) for sample in built]
    assert counts == sorted(counts), "a shard holds samples with fewer branches first"
    assert Counter(counts) == Counter([3, 4, 1, 1, 4, 3])
    assert (report.records, report.members, report.samples, report.images) == (16, 16, 6, 6)
    assert report.draws == 16, "the amounts of a dataset with share count records"
    for sample in built:
        records = [source["record"] for source in sample.metadata["sources"]]
        assert records == sorted(records, key=lambda name: int(name[1:]))
        if len(records) > 1:
            assert sample.metadata["branches"] == [{"id": f"chat/{name}", "records": 1} for name in records]
        else:
            assert "branches" not in sample.metadata
            assert sample.branch_ids is None
    assert shards.verify(shards.open(tmp_path / "build")).problems == []


def test_a_beginning_ends_where_the_records_differ_and_no_token_of_it_is_trained(tmp_path: Path) -> None:
    (name,) = write_images(tmp_path / "mine", 1)
    records = [chat_record(number, images=[name]) for number in range(3)]
    for number, record in enumerate(records):
        record["messages"][0]["content"] = "<image>\nThe same question?"
        record["messages"][1]["content"] = f"{number} is the answer."
    build(chat_blend(tmp_path, records, dataset={"share": 3}))
    (sample,) = samples_of(tmp_path / "build")
    first = sample.branches[0]
    assert first.beginning == np.flatnonzero(sample.labels != -100)[0], "captions share the whole question"
    assert all(sample.labels[branch.start] != -100 for branch in sample.branches)


def test_records_with_other_images_another_order_or_another_beginning_stay_alone(tmp_path: Path) -> None:
    one, two = write_images(tmp_path / "mine", 2)
    records: list[dict[str, Any]] = [
        chat_record(0, images=[one]),
        chat_record(1, images=[one, two]),
        chat_record(2, images=[two, one]),
        chat_record(3),
        chat_record(4),
        chat_record(5, images=[one]),
        chat_record(6, images=[one]),
    ]
    records[5]["messages"].insert(0, {"role": "system", "content": "Another prompt."})
    records[6]["messages"][0]["content"] = "A question before it: <image>"
    build(chat_blend(tmp_path, records, dataset={"share": 9}, template="chatml"))
    assert [len(sample.branches) for sample in samples_of(tmp_path / "build")] == [1] * 7
    assert shards.open(tmp_path / "build").manifest.has_branches is False


def test_records_share_although_others_with_another_beginning_stand_between_them(tmp_path: Path) -> None:
    (name,) = write_images(tmp_path / "mine", 1)
    records = [chat_record(number, images=[name]) for number in range(6)]
    for record in records[::2]:
        record["messages"].insert(0, {"role": "system", "content": "Another prompt."})
    build(chat_blend(tmp_path, records, dataset={"share": 3}))
    assert [len(sample.branches) for sample in samples_of(tmp_path / "build")] == [3, 3]


def test_records_of_several_rounds_and_images_share_up_to_the_first_answer(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 2)
    records = [chat_record(number, images=names, rounds=3) for number in range(3)]
    for record in records:
        record["messages"][0] = {"role": "user", "content": "<image>\n<image>\nThe same?"}
        record["messages"][1] = {"role": "assistant", "content": "The same answer."}
    build(chat_blend(tmp_path, records, dataset={"share": 3}))
    (sample,) = samples_of(tmp_path / "build")
    assert len(sample.images) == 2
    assert sample.branches[0].beginning == np.flatnonzero(sample.labels != -100)[0]
    assert all(sample.labels[branch.start] != -100 for branch in sample.branches), (
        "the equal answers are trained thrice"
    )


def test_a_sample_is_never_longer_than_max_length_with_its_beginning_counted_once(tmp_path: Path) -> None:
    build(question_blend(tmp_path, {0: 9}, share=9, limits={"max_length": 160}))
    built = samples_of(tmp_path / "build")
    lengths = [len(sample.ids) + len(sample.images) * 15 for sample in built]
    assert max(lengths) <= 160
    assert max(len(sample.branches) for sample in built) > 1
    assert sum(len(sample.branches) for sample in built) == 9
    longest = max(built, key=lambda sample: len(sample.branches))
    alone = [branch.beginning + branch.end - branch.start + 15 for branch in longest.branches]
    assert sum(alone) > 160, "apart they would not fit"


def test_a_record_whose_answer_was_cut_stays_alone(tmp_path: Path) -> None:
    (name,) = write_images(tmp_path / "mine", 1)
    records = [chat_record(number, images=[name]) for number in range(4)]
    records[1]["messages"][1]["content"] = "A long answer. " * 50
    build(chat_blend(tmp_path, records, dataset={"share": 4}, limits={"max_length": 200, "too_long": "cut"}))
    built = samples_of(tmp_path / "build")
    (cut,) = [sample for sample in built if sample.metadata.get("notes")]
    assert (cut.metadata["notes"], len(cut.branches)) == (["answer_cut"], 1)
    assert len(cut.ids) + 15 == 200, "it is as long as a sample may be, so no other record fits into its sample"
    assert [[branch["id"] for branch in sample.metadata.get("branches", [])] for sample in built] == [
        [],
        ["chat/r0", "chat/r2", "chat/r3"],
    ], "a record that does not fit parts no others"


def test_an_image_that_cannot_be_read_rejects_every_record_that_shows_it_and_no_other(tmp_path: Path) -> None:
    blend = question_blend(tmp_path, {0: 3, 1: 2}, limits={"max_reject_share": 1})
    (tmp_path / "mine/0.jpg").write_bytes(b"no image")
    report = build(blend).datasets["mine"]
    assert dict(report.rejects) == {"image_unreadable": 3}
    assert [line["record"] for line in rejects_of(tmp_path / "build")] == ["r0", "r1", "r2"]
    assert [len(sample.branches) for sample in samples_of(tmp_path / "build")] == [2]


def test_a_filter_of_images_counts_every_record_that_it_drops(tmp_path: Path) -> None:
    blend = question_blend(tmp_path, {0: 3, 1: 2}, dataset={"filter": {"image_width": {"min": 40}}})
    (tmp_path / "mine/1.jpg").write_bytes(jpeg(1, size=(48, 24)))
    report = build(blend).datasets["mine"]
    assert (dict(report.rejects), dict(report.filtered)) == ({"filtered": 3}, {"image_width": 3})


@pytest.mark.parametrize("workers", [1, 2])
def test_shared_builds_are_the_same_for_any_number_of_workers_and_runs(tmp_path: Path, workers: int) -> None:
    questions = {image: 1 + image % 5 for image in range(12)}
    blend = question_blend(tmp_path, questions, shard={"max_samples": 8})
    build(blend)
    build(blend, out=tmp_path / "other", workers=workers)
    assert files_of(tmp_path / "build") == files_of(tmp_path / "other")
    infos = shards.open(tmp_path / "build").manifest.datasets["mine"].shards["train"]
    assert len(infos) > 2
    assert sum(infos.samples) == sum(-(-count // 4) for count in questions.values()), "no shard parts an image"


def test_a_build_without_branches_has_the_bytes_and_the_version_that_it_had_before(tmp_path: Path) -> None:
    build(image_blend(tmp_path / "plain"))
    build(image_blend(tmp_path / "shared", dataset={"share": 4}))
    plain, shared = files_of(tmp_path / "plain/build"), files_of(tmp_path / "shared/build")
    assert {name: data for name, data in plain.items() if name.startswith("shards/")} == {
        name: data for name, data in shared.items() if name.startswith("shards/")
    }
    assert b'"version": 1' in plain["manifest.json"]
    assert b'"version": 1' in shared["manifest.json"]
    build(question_blend(tmp_path / "branches", {0: 2}))
    assert b'"version": 2' in files_of(tmp_path / "branches/build")["manifest.json"]


def test_share_with_concat_is_refused_with_the_difference(tmp_path: Path) -> None:
    blend = question_blend(tmp_path, {0: 2}, dataset={"concat": 2})
    with pytest.raises(ConfigError, match="share: 4 and concat: 2; expected one of them: share keeps records apart"):
        load_blend(blend)


def test_rows_of_a_table_that_repeat_an_image_share_it(tmp_path: Path) -> None:
    cells = [{"bytes": jpeg(number % 2), "path": None} for number in range(6)]
    rows = [{"image": cell, "question": f"Which {number}?", "answer": "It."} for number, cell in enumerate(cells)]
    (tmp_path / "mine").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine/rows.parquet")
    dataset = {"name": "mine", "adapter": "chat", "root": "mine", "share": 4}
    build(write_blend(tmp_path / "blend.yaml", [dataset]))
    built = samples_of(tmp_path / "build")
    assert [len(sample.branches) for sample in built] == [3, 3]
    assert [list(map(bytes, sample.images)) for sample in built] == [[jpeg(0)], [jpeg(1)]]
    assert [[source["record"] for source in sample.metadata["sources"]] for sample in built] == [
        ["0", "2", "4"],
        ["1", "3", "5"],
    ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40), st.integers(1, 4))
def test_units_hold_rows_with_the_same_groups_those_with_the_same_images_together(
    rows: list[tuple[int, int]], most: int
) -> None:
    groups = np.array([group for group, _ in rows], np.uint64)
    images = np.array([4 * group + image for group, image in rows], np.uint64)
    order, starts, adds_images = image_units(groups, images, most)
    by_group: dict[int, dict[int, list[int]]] = {}
    for row, (group, image) in enumerate(rows):
        by_group.setdefault(group, {}).setdefault(image, []).append(row)
    laid = [[row for rows in by_image.values() for row in rows] for by_image in by_group.values()]
    expected = [group[first : first + most] for group in laid for first in range(0, len(group), most)]
    cuts = [*np.flatnonzero(starts).tolist(), len(rows)]
    assert [order[start:end].tolist() for start, end in pairwise(cuts)] == expected
    different = [len(set(images[unit].tolist())) for unit in expected]
    assert [int(adds_images[start:end].sum()) for start, end in pairwise(cuts)] == different


def test_images_that_records_share_count_once_for_the_size_of_a_shard(tmp_path: Path) -> None:
    build(question_blend(tmp_path, {0: 3, 1: 3, 2: 2, 3: 1}, shard={"max_images": 2}))
    infos = shards.open(tmp_path / "build").manifest.datasets["mine"].shards["train"]
    assert [info.images for info in infos] == [2, 2]
    assert [info.branches for info in infos] == [(0, 0, 2), (1, 1)]
