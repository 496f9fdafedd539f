"""Finding datasets below a folder: layouts, one's own files, their images, and what cannot be read."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from preprocess.adapters.registry import ADAPTERS
from preprocess.blend import folders, own_files
from preprocess.blend.discover import discover, find_layouts
from preprocess.blend.draft import write_blend
from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import load_blend
from preprocess.cli import cli
from preprocess.errors import ConfigError
from tests.support.drafts import found_in, write_image, write_json
from tests.support.small_blends import SAMPLES, chat_record, jpeg, write_chat, write_images

# Known layouts


def test_every_sample_dataset_is_found() -> None:
    assert {name for name, _, _ in find_layouts(list(folders.walk(SAMPLES)))} == set(ADAPTERS) - {"chat"}


CAPTIONS = {
    "images": [{"id": 1, "file_name": "000000000001.jpg"}],
    "annotations": [{"id": 7, "image_id": 1, "caption": "A kettle on a stove."}],
}


@pytest.mark.parametrize("root", ["coco", "."])
def test_the_captions_of_coco_are_found_and_built_in_the_folders_of_its_authors(tmp_path: Path, root: str) -> None:
    write_json(tmp_path / "data/coco/annotations/captions_val2017.json", CAPTIONS)
    write_image(tmp_path / "data/coco/val2017/000000000001.jpg")
    (dataset,) = found_in(tmp_path / "data" / root)
    assert (dataset["adapter"], dataset["name"]) == ("coco_caption", "coco_caption")
    assert "annotations" not in dataset
    found = load_blend(next(tmp_path.rglob("*.yaml")))
    (inputs,) = find_inputs(found, next(tmp_path.rglob("*.yaml")).parent).values()
    assert [path.name for path in inputs.images] == ["val2017"]


def test_captions_of_coco_in_both_layouts_are_read_in_the_first_one(tmp_path: Path) -> None:
    (tmp_path / "coco_caption").mkdir()
    (tmp_path / "coco_caption/dataset.json").write_bytes((SAMPLES / "coco_caption/dataset.json").read_bytes())
    write_json(tmp_path / "coco/annotations/captions_val2017.json", CAPTIONS)
    write_image(tmp_path / "coco/val2017/000000000001.jpg")
    layouts = [(name, layout.annotations) for name, layout, _ in find_layouts(list(folders.walk(tmp_path)))]
    assert ("coco_caption", ("coco_caption/dataset.json",)) in layouts


def test_the_folders_of_vqas_own_program_are_found(tmp_path: Path) -> None:
    write_json(tmp_path / "vqa/Questions/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": []})
    write_json(tmp_path / "vqa/Annotations/v2_mscoco_val2014_annotations.json", {"annotations": []})
    (tmp_path / "vqa/Images/mscoco/val2014").mkdir(parents=True)
    assert [dataset["adapter"] for dataset in found_in(tmp_path / "vqa")] == ["vqa_v2"]


def test_images_that_are_not_where_the_layout_has_them_are_searched_for(tmp_path: Path) -> None:
    record = {"id": "1", "image": "1.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    record["conversations"].append({"from": "gpt", "value": "A cup."})  # type: ignore[attr-defined]
    write_json(tmp_path / "data/llava/detail_23k.json", [record])
    write_image(tmp_path / "data/photos/2017/1.jpg")
    (dataset,) = found_in(tmp_path / "data")
    assert (dataset["adapter"], dataset["images"]) == ("llava", ["photos/2017"])


# One's own files


def test_own_files_are_found_with_the_folder_of_their_images(tmp_path: Path) -> None:
    names = write_images(tmp_path / "data/pictures/all", 2)
    records = [chat_record(number, images=[name]) for number, name in enumerate(names)]
    write_chat(tmp_path / "data/texts", records)
    assert found_in(tmp_path / "data") == [
        {
            "name": "chat",
            "adapter": "chat",
            "root": "data/texts",
            "annotations": ["chat.jsonl"],
            "images": ["../pictures/all"],
            "samples": "all",
        }
    ]


def test_images_that_the_adapter_finds_by_itself_are_not_listed(tmp_path: Path) -> None:
    names = write_images(tmp_path / "data/images", 2)
    write_chat(tmp_path / "data", [chat_record(0, images=names)])
    (dataset,) = found_in(tmp_path / "data")
    assert "images" not in dataset


def test_images_in_an_archive_next_to_the_records_are_found(tmp_path: Path) -> None:
    write_chat(tmp_path / "data", [chat_record(0, images=["photos/a.jpg"])])
    with zipfile.ZipFile(tmp_path / "data/images.zip", "w") as archive:
        archive.writestr("photos/a.jpg", jpeg(1))
    (dataset,) = found_in(tmp_path / "data")
    assert dataset["images"] == ["images.zip"]


def test_images_in_several_folders_are_all_listed_the_nearest_first(tmp_path: Path) -> None:
    write_image(tmp_path / "data/b/far/x/1.jpg")
    write_image(tmp_path / "data/a/2.jpg")
    write_image(tmp_path / "data/b/2.jpg")
    write_chat(tmp_path / "data/a", [chat_record(0, images=["1.jpg", "2.jpg"])])
    (dataset,) = found_in(tmp_path / "data")
    assert dataset["images"] == [".", "../b/far/x"]


def test_images_that_records_name_by_another_path_are_pointed_at(tmp_path: Path) -> None:
    write_image(tmp_path / "photos/a.jpg")
    write_chat(tmp_path, [chat_record(0, images=["train/a.jpg"])])
    (dataset,) = discover(tmp_path).datasets
    note = dataset.notes[-1]
    assert note.startswith("images not found: its records name train/a.jpg")
    assert f"{tmp_path / 'photos/a.jpg'} is there" in note


def test_images_that_records_name_by_url_are_to_be_fetched(tmp_path: Path) -> None:
    write_chat(tmp_path, [chat_record(0, images=["https://example.org/a.jpg"])])
    (dataset,) = discover(tmp_path).datasets
    assert dataset.notes[1:] == ("its records name images by URL: run dsvl-prep fetch before the build",)


def test_parquet_files_with_images_in_them_are_one_dataset_without_a_folder_of_images(tmp_path: Path) -> None:
    image = {"bytes": jpeg(1), "path": None}
    rows = [{"messages": chat_record(0)["messages"], "images": [image]}]
    for number in range(12):
        path = tmp_path / f"data/train-{number:05}-of-00012.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    (dataset,) = found_in(tmp_path / "data")
    assert dataset["annotations"] == ["train-*-of-*.parquet"]
    assert "images" not in dataset


def test_files_of_other_names_are_datasets_of_their_own_and_splits_of_one_name_are_not(tmp_path: Path) -> None:
    for name in ("train.jsonl", "val.jsonl", "jokes.jsonl"):
        write_chat(tmp_path / "data", [chat_record(0)]).joinpath("chat.jsonl").rename(tmp_path / "data" / name)
    assert {dataset["name"]: dataset["annotations"] for dataset in found_in(tmp_path / "data")} == {
        "jokes": ["jokes.jsonl"],
        "data": ["train.jsonl", "val.jsonl"],
    }


def test_files_of_a_dataset_are_not_found_again(tmp_path: Path) -> None:
    write_json(tmp_path / "coco/annotations/captions_val2017.json", CAPTIONS)
    write_image(tmp_path / "coco/val2017/000000000001.jpg")
    write_json(tmp_path / "coco/val2017/notes.json", [chat_record(0)])
    found = discover(tmp_path)
    assert [dataset.adapter for dataset in found.datasets] == ["coco_caption"]
    assert not found.unread


def test_images_that_records_name_from_their_own_folder_upwards_are_found(tmp_path: Path) -> None:
    write_image(tmp_path / "data/photos/a.jpg")
    write_chat(tmp_path / "data/texts", [chat_record(0, images=["../photos/a.jpg"])])
    (dataset,) = found_in(tmp_path / "data")
    assert dataset["images"] == [".."]


def test_a_folder_that_is_named_after_a_split_is_below_the_root_and_has_the_images_of_its_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_chat(tmp_path / "data" / split, [chat_record(0, images=["0.jpg"])])
        write_image(tmp_path / "data/images" / split / "0.jpg")
    train, val = found_in(tmp_path / "data")
    assert (train["root"], train["annotations"], train["images"]) == ("data", ["train/chat.jsonl"], ["images/train"])
    assert (val["annotations"], val["images"]) == (["val/chat.jsonl"], ["images/val"])
    (note,) = discover(tmp_path / "data").datasets[1].notes[1:]
    assert note == f"{tmp_path / 'data/images/train'} has an image 0.jpg too: is `images` the right folder?"


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("instances.json", '{"images": [], "annotations": []}', "no conversation|neither"),
        ("empty.jsonl", "", "empty"),
        ("table.csv", "price,size\n1,2\n", "a table of text with the columns price, size"),
        ("other.jsonl", '{"prompt_of_mine": "x"}\n', "no conversation: missing_key: "),
        ("cut.json", '[{"messages": ', "broken JSON"),
        ("deep.jsonl", '{"data": {"log": [{"role": "user", "content": "Hi"}]}}\n', "its turns are in data.log"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_reason(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    write_chat(tmp_path / "good", [chat_record(0)])
    (tmp_path / name).write_text(content)
    found = discover(tmp_path)
    assert [dataset.folder for dataset in found.datasets] == [tmp_path / "good"]
    (unread,) = found.unread
    assert unread.path == tmp_path / name
    assert any(word in unread.reason for word in reason.split("|")), unread.reason


def test_what_cannot_be_read_is_in_the_blend_file_and_on_the_terminal(tmp_path: Path) -> None:
    write_chat(tmp_path / "data", [chat_record(0)])
    (tmp_path / "data/two\nlines.json").write_text("")
    with zipfile.ZipFile(tmp_path / "data/annotations.zip", "w") as archive:
        archive.writestr("a.json", "[]")
    out = tmp_path / "blend.yaml"
    done = CliRunner().invoke(cli, ["init", "--root", str(tmp_path / "data"), "--out", str(out)])
    assert done.exit_code == 0
    assert f"note: not in the blend: {tmp_path / 'data/annotations.zip'}: a zip" in done.stderr
    assert "two lines.json: empty" in out.read_text(encoding="utf-8")
    assert len(load_blend(out).datasets) == 1


def test_a_folder_without_any_dataset_names_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"no dataset there .*found, but cannot be read: .*empty.jsonl: empty"):
        discover(tmp_path)


def test_an_object_of_many_megabytes_on_one_line_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files, "_MAX_LINE_BYTES", 4096)
    write_json(tmp_path / "big.json", {"x" * 5000: []})
    write_chat(tmp_path / "good", [chat_record(0)])
    (unread,) = discover(tmp_path).unread
    assert unread.reason == "one JSON object, not records"


def test_of_many_files_with_other_names_only_some_are_opened(tmp_path: Path) -> None:
    words = [chr(97 + number // 26) + chr(97 + number % 26) for number in range(own_files.MAX_GROUPS + 3)]
    for word in words:
        (tmp_path / f"{word}.json").write_text("")
    write_chat(tmp_path / "good", [chat_record(0)])
    *_, last = discover(tmp_path).unread
    assert (last.count, last.reason) == (3, "not opened: the folder holds too many files of different names")
    assert last.path == tmp_path / f"{words[-3]}.json"


# The blend file


@pytest.mark.parametrize("name", ["2014", "yes", "1e-3", "null", "a: b # c", "it's", 'say "hi"', "two\nlines", "é 漢"])
@pytest.mark.parametrize("is_own", [False, True], ids=["layout", "own"])
def test_the_first_blend_file_names_a_folder_whatever_it_is_called(tmp_path: Path, name: str, is_own: bool) -> None:
    if is_own:
        write_chat(tmp_path / name, [chat_record(0)])
    else:
        (tmp_path / name / "OCR_VQA/images").mkdir(parents=True)
        (tmp_path / name / "OCR_VQA/dataset.json").write_text("{}")
    write_blend(tmp_path, tmp_path / "blend.yaml")
    assert load_blend(tmp_path / "blend.yaml").datasets[0].root == name
    assert yaml.safe_load((tmp_path / "blend.yaml").read_text(encoding="utf-8"))["datasets"][0]["root"] == name


# Walking


class _File:
    """A directory entry of which nothing is asked but its name, and whether it is a folder."""

    name = "photo.jpg"

    def is_dir(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a file was asked for")


def test_files_among_the_folders_are_passed_by_and_folders_are_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a", ".hidden", "c"):
        (tmp_path / name).mkdir()
    scandir = os.scandir

    class Scan:
        def __init__(self, folder: Path) -> None:
            self._entries = scandir(folder)

        def __enter__(self) -> Any:
            return (entry for real in self._entries for entry in (_File(), real))

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Scan)
    found = list(folders.walk(tmp_path))
    assert [folder.path for folder in found] == [tmp_path, *(tmp_path / name for name in "abc")]
    assert not any(folder.records for folder in found)
