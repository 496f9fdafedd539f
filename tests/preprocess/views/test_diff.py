"""`dsvl-prep diff` finds what changed between two builds, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import shards
from preprocess.views import diff_page
from preprocess.views.diff import BuildDifferences, DatasetDifferences, compare_builds
from preprocess.views.diff_samples import SampleDifference
from shards import ImageError
from shards.images import page_images
from tests.support.browser import Chromium, is_accessible
from tests.support.commands import dsvl_prep
from tests.support.small_blends import build, chat_blend, chat_record, jpeg, write_images

HOSTILE = "</ins><script>alert(1)</script>\x1b[31m"


def make(folder: Path, records: list[dict[str, Any]], **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    build(chat_blend(folder, records, **settings))
    return folder / "build"


def compare(old: Path, new: Path, *, limit: int = 20, read: int = 20) -> BuildDifferences:
    return compare_builds(shards.open(old), shards.open(new), limit=limit, read=read)


def only(differences: BuildDifferences) -> DatasetDifferences:
    (dataset,) = differences.datasets
    return dataset


def shown(differences: BuildDifferences) -> dict[str, SampleDifference]:
    return {sample.id.removeprefix("chat/"): sample for sample in differences.samples}


def joined(sample: SampleDifference, marks: str) -> str:
    return "".join(text for mark, text in sample.text or sample.labels if mark in marks)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A build, and one of the same records: the first is gone, 2, 3 and 4 changed, 8 is new."""
    folder = tmp_path_factory.mktemp("edited")
    names = write_images(folder / "a/mine", 9)
    old = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names[:8])]
    new = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)][1:]
    new[1]["messages"][1]["content"] = f"Something else {HOSTILE}"
    new[2]["messages"][3]["trained"] = False
    shutil.copytree(folder / "a/mine", folder / "b/mine")
    (folder / "b/mine/4.jpg").write_bytes(jpeg(44))
    return make(folder / "a", old), make(folder / "b", new)


def test_samples_are_found_again_though_their_keys_shifted(edited: tuple[Path, Path]) -> None:
    differences = compare(*edited)
    dataset = only(differences)
    assert (dataset.equal, dataset.changed, dataset.added, dataset.removed) == (4, 3, 1, 1)
    assert dataset.aspects == {"text": 1, "labels": 1, "images": 1}
    samples = shown(differences)
    assert {name: sample.what for name, sample in samples.items()} == {
        "r0": ("removed",),
        "r2": ("text",),
        "r3": ("labels",),
        "r4": ("images",),
        "r8": ("added",),
    }
    assert joined(samples["r2"], "-") == "Answer 0 of record 2."
    assert joined(samples["r2"], "+") == f"Something else {HOSTILE}"
    assert joined(samples["r3"], "-") == "Answer 1 of record 3.</s>"
    assert not joined(samples["r3"], "+")
    (image,) = samples["r4"].images
    assert image.old is not None
    assert image.new is not None
    assert (image.old.name, image.old.number, image.old.index, image.new.index) == ("4.jpg", 0, 4, 3)
    assert "Question 0 of record 8?" in joined(samples["r8"], "+")
    names = {count.name: (count.old, count.new) for count in differences.manifest.counts}
    assert names["trained_tokens"][0] != names["trained_tokens"][1]
    assert [difference.name for difference in differences.manifest.inputs] == ["mine: chat.jsonl"]


def test_a_limit_shows_samples_of_every_kind_and_counts_stay_exact(edited: tuple[Path, Path]) -> None:
    differences = compare(*edited, limit=4, read=1)
    assert [sample.what for sample in differences.samples] == [("text",), ("tokens",), ("images",), ("added",)]
    assert only(differences).aspects == {"text": 1, "tokens": 1, "images": 1}
    assert differences.num_different == 5
    assert compare(*edited, limit=0).samples == ()


def test_a_damaged_sample_is_shown_with_its_fault(edited: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(edited[1], tmp_path / "copy")
    (tar,) = (copy / "shards/mine").glob("*.tar")
    content = bytearray(tar.read_bytes())
    content[content.find(b"mine-000000001.tokens.npy") + 700] ^= 1
    tar.write_bytes(content)
    differences = compare(edited[0], copy)
    assert only(differences).aspects == {"labels": 1, "images": 1, "damaged": 1}
    (fault,) = [sample.fault for sample in differences.samples if sample.fault]
    assert "sample mine-000000001 is damaged" in fault


def test_another_template_changes_texts_and_not_which_sample_is_which(tmp_path: Path) -> None:
    records = [chat_record(number) for number in range(4)]
    old, new = (make(tmp_path / name, records, template=name) for name in ("vicuna", "chatml"))
    differences = compare(old, new)
    assert only(differences).aspects == {"text": 4}
    assert [(setting.name, setting.old, setting.new) for setting in differences.manifest.settings] == [
        ("template", '"vicuna"', '"chatml"')
    ]
    (template,) = differences.manifest.templates
    assert template.datasets == ("mine",)
    assert template.lines[:2] == ("--- old", "+++ new")
    assert any("ASSISTANT" in line for line in template.lines if line.startswith("-"))
    assert {name: sample.new and sample.new.key[-1] for name, sample in shown(differences).items()} == {
        f"r{number}": str(number) for number in range(4)
    }


def test_samples_whose_text_is_equal_under_another_tokenizer_are_counted_apart(tmp_path: Path) -> None:
    names = write_images(tmp_path / "a/mine", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    records = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    old = make(tmp_path / "a", records)
    new = make(tmp_path / "b", records, add_tokens=["<extra>"])
    differences = compare(old, new)
    assert only(differences).aspects == {"ids": 3}
    assert differences.manifest.added_tokens.only_new == ("<extra>",)
    assert {"fingerprint", "vocabulary_size"} <= {one.name for one in differences.manifest.tokenizer}
    assert all(not sample.text and not sample.labels for sample in differences.samples)


def test_samples_that_moved_to_the_other_split_are_reported_on_their_own(tmp_path: Path) -> None:
    records = [chat_record(number) for number in range(4)]
    old = make(tmp_path / "a", records)
    new = make(tmp_path / "b", [records[0], {**records[1], "split": "val"}, *records[2:]])
    dataset = only(compare(old, new))
    assert (dataset.equal, dataset.changed, dataset.to_eval, dataset.to_train) == (3, 1, 1, 0)
    assert dataset.aspects == {"split": 1}
    assert only(compare(new, old)).to_train == 1


def test_a_renamed_dataset_is_the_same_one_and_another_is_added(tmp_path: Path) -> None:
    records = [chat_record(number) for number in range(3)]
    old = make(tmp_path / "a", records)
    new = make(tmp_path / "b", records, dataset={"name": "yours"})
    dataset = only(compare(old, new))
    assert (dataset.old_name, dataset.new_name, dataset.equal, dataset.changed) == ("mine", "yours", 3, 0)
    other = make(tmp_path / "c", records[:1], dataset={"name": "yours"})
    assert [
        (dataset.old_name, dataset.new_name, dataset.added, dataset.removed) for dataset in compare(old, other).datasets
    ] == [
        ("mine", None, 0, 3),
        (None, "yours", 1, 0),
    ]


def test_a_build_has_no_differences_to_itself(edited: tuple[Path, Path]) -> None:
    differences = compare(edited[0], edited[0])
    assert not differences
    assert differences.to_json()["equal"] is True
    done = dsvl_prep("diff", edited[0], edited[0], "--exit-code")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no differences")


def test_the_command_exits_with_1_for_differences_only_if_it_is_asked_to(edited: tuple[Path, Path]) -> None:
    plain, asked = (dsvl_prep("diff", *edited, "--json", "--limit", 1, *more) for more in ((), ("--exit-code",)))
    assert (plain.returncode, asked.returncode) == (0, 1)
    tree = json.loads(plain.stdout)
    assert (tree["equal"], tree["datasets"]["mine"]["changed"], len(tree["samples"])) == (False, 3, 1)


def test_the_terminal_shows_words_and_no_control_characters(edited: tuple[Path, Path]) -> None:
    done = dsvl_prep("diff", *edited)
    assert r"[-Answer 0 of record 2.-]{+Something else </ins><script>alert(1)</script>\x1b[31m" in done.stdout
    assert "\x1b" not in done.stdout
    assert "mine: changed: images 1, labels 1, text 1" in done.stdout
    assert "image 1 (4.jpg) became 1 (4.jpg): other bytes" in done.stdout


def test_the_page_shows_texts_and_images_side_by_side(
    edited: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "d.html"
    assert dsvl_prep("diff", *edited, "--html", page).returncode == 0
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<del>Answer 0 of record 2.</del>" in html
    assert "<ins>Something else &lt;/ins&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in html
    assert html.count('src="data:image/jpeg;base64,') == 4  # a pair, one added, one removed
    assert 'alt="4.jpg in A"' in html
    assert "5 of 5 samples that differ" in html
    monkeypatch.setattr(diff_page, "MAX_SAMPLES", 4)
    monkeypatch.setattr(diff_page, "MAX_IMAGES", 1)
    dsvl_prep("diff", *edited, "--html", page)
    html = page.read_text(encoding="utf-8")
    assert html.count('src="data:image/jpeg;base64,') == 1
    assert "4 of 5 samples that differ" in html
    assert "1 more images of this sample differ; the page has no room for them." in html


def test_an_image_that_cannot_be_shown_has_its_reason_on_the_page(
    edited: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_images, "thumbnail", Mock(side_effect=ImageError("unreadable", "ends <early>")))
    assert dsvl_prep("diff", *edited, "--html", tmp_path / "d.html").returncode == 0
    html = (tmp_path / "d.html").read_text(encoding="utf-8")
    assert html.count("cannot be shown: ends &lt;early&gt;") == 4


def test_what_is_no_build_is_refused_before_the_work(edited: tuple[Path, Path], tmp_path: Path) -> None:
    newer = shutil.copytree(edited[0], tmp_path / "newer")
    text = (newer / "manifest.json").read_text(encoding="utf-8")
    (newer / "manifest.json").write_text(text.replace('"version": 1', '"version": 9'), encoding="utf-8")
    for location, problem in ((newer, "the build is newer: format version 9"), (tmp_path, "not a finished build")):
        done = dsvl_prep("diff", edited[0], location)
        assert done.returncode == 1
        assert problem in done.stderr
    assert dsvl_prep("diff", *edited, "--html", tmp_path / "nowhere/d.html").returncode == 2


def test_the_page_reads_well_in_a_browser(edited: tuple[Path, Path], tmp_path: Path, chromium: Chromium) -> None:
    assert dsvl_prep("diff", *edited, "--html", tmp_path / "d.html").returncode == 0

    def check(page: Any) -> list[str]:
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert page.locator("del, ins").count() > 1
        return is_accessible(page)

    for width, dark in ((375, True), (1200, False)):
        assert chromium.look(f"file://{tmp_path / 'd.html'}", check, width=width, dark=dark) == []
