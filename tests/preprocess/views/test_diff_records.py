"""`dsvl-prep diff` of builds whose samples have branches: records are compared, in whatever samples they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import shards
from preprocess.views.diff import BuildDifferences, DatasetDifferences, compare_builds
from preprocess.views.diff_page import write_diff_page
from preprocess.views.diff_terminal import print_differences
from shards import Build
from tests.support.shared_builds import BuiltRecord, records_of
from tests.support.small_blends import build, chat_blend, chat_record, jpeg, write_images

IMAGES = [0, 0, 0, 0, 0, 1, 1, 2]
"""The image of each record"""

Records = list[dict[str, Any]]
Make = Callable[..., Build]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Builds of the records r0 to r7, or of what `edit` makes of them."""

    def build_it(share: int, edit: Callable[[Records], Records] = lambda records: records, **settings: Any) -> Build:
        folder = tmp_path_factory.mktemp("compared")
        names = write_images(folder / "mine", 3)
        records = edit([chat_record(number, images=[names[image]]) for number, image in enumerate(IMAGES)])
        build(chat_blend(folder, records, dataset={"share": share}, **settings))
        return shards.open(folder / "build")

    return build_it


def edited(records: Records) -> Records:
    """r1 has another answer, r3 is gone, r8 is new."""
    records[1]["messages"][1]["content"] = "Something else."
    return [*records[:3], *records[4:], chat_record(8, images=["1.jpg"])]


def only(differences: BuildDifferences) -> DatasetDifferences:
    (dataset,) = differences.datasets
    return dataset


def twin(old: Build, new: Build) -> tuple[int, int, int, int]:
    """How many records are equal, changed, added and removed, by their ids."""
    first, second = (records_of(Path(build.store.location)) for build in (old, new))

    def content(records: Mapping[str, BuiltRecord], name: str) -> BuiltRecord:
        return records[name]._replace(sample="")

    both = first.keys() & second.keys()
    equal = sum(content(first, name) == content(second, name) for name in both)
    return equal, len(both) - equal, len(second.keys() - both), len(first.keys() - both)


@pytest.mark.parametrize(("before", "after", "regrouped"), [(1, 4, 6), (4, 1, 6), (2, 4, 4), (3, 3, 0)])
def test_records_that_another_share_puts_into_other_samples_are_equal(
    make: Make, before: int, after: int, regrouped: int
) -> None:
    old, new = make(before), make(after)
    differences = compare_builds(old, new)
    dataset = only(differences)
    assert (dataset.equal, dataset.changed, dataset.added, dataset.removed) == twin(old, new) == (8, 0, 0, 0)
    assert (dataset.unit, dataset.regrouped, differences.samples) == ("records", regrouped, ())
    assert bool(differences) is (before != after)


def test_records_that_changed_are_shown_alone_and_their_companions_are_not(make: Make) -> None:
    old, new = make(4), make(4, edited)
    differences = compare_builds(old, new)
    dataset = only(differences)
    assert (dataset.equal, dataset.changed, dataset.added, dataset.removed) == twin(old, new) == (6, 1, 1, 1)
    shown = {sample.id: sample for sample in differences.samples}
    assert {name: sample.what for name, sample in shown.items()} == {
        "chat/r1": ("text",),
        "chat/r3": ("removed",),
        "chat/r8": ("added",),
    }
    changed = shown["chat/r1"]
    assert changed.new is not None
    assert changed.new.branch == 1
    assert "".join(text for mark, text in changed.text if mark in "=+").count("Question 0 of record 1?") == 1
    assert not [text for _, text in changed.text if "record 2" in text], "the record next to it"
    assert (changed.images, changed.metadata) == ((), ())
    assert dataset.regrouped == 6, "r0, r1, r2 and r4 lost a companion or got one, r5 and r6 got one, r7 is alone"


def test_another_image_and_another_template_change_every_record_that_shows_them(make: Make) -> None:
    old, new = make(4), make(4, template="chatml")
    assert only(compare_builds(old, new)).aspects == {"text": 8}
    folder = Path(old.store.location).parent
    (folder / "mine/1.jpg").write_bytes(jpeg(9))
    build(folder / "blend.yaml", out=folder / "again")
    differences = compare_builds(old, shards.open(folder / "again"))
    assert only(differences).aspects == {"images": 2}
    assert {sample.id for sample in differences.samples} == {"chat/r5", "chat/r6"}
    assert only(differences).regrouped == 0


def test_the_terminal_and_the_page_say_that_records_are_compared_and_which_were_regrouped(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = make(1), make(4, edited)
    differences = compare_builds(old, new, limit=2)
    print_differences(differences)
    shown = capsys.readouterr().out
    line = "mine: regrouped: 6 records share a sample with other records than before"
    assert line in shown
    assert "2 of 3 records are shown: --limit" in shown
    assert "(train mine-000000001 -> train mine-000000000 branch 2)" in shown
    write_diff_page(tmp_path / "diff.html", differences, old, new)
    html = (tmp_path / "diff.html").read_text(encoding="utf-8")
    assert line in html
    assert "<h2>Records</h2>" in html
    assert "2 of 3 records that differ" in html
    assert differences.to_json()["datasets"]["mine"]["unit"] == "records"


def test_a_damaged_sample_with_branches_is_a_fault_and_the_others_are_found(make: Make) -> None:
    old, new = make(1), make(4)
    folder = Path(new.store.location)
    (tar,) = (folder / "shards/mine").glob("*.tar")
    content = bytearray(tar.read_bytes())
    content[content.find(b"mine-000000005.tokens.npy") + 700] ^= 1
    tar.write_bytes(content)
    differences = compare_builds(old, shards.open(folder))
    dataset = only(differences)
    assert (dataset.equal, dataset.changed, dataset.added, dataset.removed) == (6, 0, 1, 2)
    assert [sample.id for sample in differences.samples if not sample.fault] == ["chat/r5", "chat/r6"]
    assert ["is damaged" in sample.fault for sample in differences.samples if sample.fault] == [True]
