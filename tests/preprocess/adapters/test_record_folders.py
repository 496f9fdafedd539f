"""A folder of images with a text next to each: what is a record, in which order, and what is said about the rest."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preprocess.adapters.base import Request
from preprocess.adapters.parsing import record_folders
from preprocess.adapters.registry import ADAPTERS
from preprocess.compiler.input_digests import input_digests, stamp
from preprocess.containers.sample_folders import samples_below
from preprocess.conversation import Conversation, Image, Reject
from preprocess.errors import DataError
from tests.support.adapting import Made, request_for, taken
from tests.support.image_archives import as_tar


def write(root: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def request_of(root: Path) -> Request:
    return replace(request_for("chat", root, annotations=(".",), images=(".",)), annotations=(root,))


def read(root: Path) -> Made:
    return list(ADAPTERS["chat"].read(request_of(root)))


def captions(made: Made) -> dict[str, tuple[Any, ...]]:
    """Image -> caption, of the records that were read."""
    return {item.images[0].name: item.turns[1].parts for item in made if isinstance(item, Conversation)}


def refused(made: Made) -> dict[str, str]:
    """The record, and the first word of the detail, which is a file -> the reason."""
    return {f"{item.source.record}: {item.detail.split()[0]}": item.reason for item in made if isinstance(item, Reject)}


def test_a_text_is_the_caption_of_the_image_with_its_name(tmp_path: Path) -> None:
    root = write(
        tmp_path / "photos", {"a.jpg": b"", "a.txt": b" A cat.\n", "b_x.PNG": b"", "b_x.txt": "Ein Hünd.".encode()}
    )
    first, second = read(root)
    assert isinstance(first, Conversation)
    assert first.id == "photos/a"
    assert first.turns[0].parts == (Image(name="a.jpg", store=None if len(request_of(root).images) > 1 else 0),)
    assert first.turns[1].parts == ("A cat.",)
    assert captions([second]) == {"b_x.PNG": ("Ein Hünd.",)}


def test_folders_and_names_are_in_order_whatever_the_file_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("b/2", "b/10", "b/2-x", "a", "a.b", "a/c/1", "z")
    for name in names:
        write(tmp_path, {f"{name}.jpg": b"", f"{name}.txt": name.encode()})
    orders = []
    scandir = os.scandir
    for backwards in (False, True):

        class Scan:
            def __init__(self, path: str, backwards: bool = backwards) -> None:
                with scandir(path) as entries:
                    self.entries = sorted(entries, key=lambda entry: entry.name, reverse=backwards)

            def __enter__(self) -> list[os.DirEntry[str]]:
                return self.entries

            def __exit__(self, *_: object) -> None: ...

        monkeypatch.setattr(os, "scandir", Scan)
        orders.append([item.sources[0].record for item in read(tmp_path) if isinstance(item, Conversation)])
    assert orders[0] == orders[1] == ["a", "a.b", "z", "a/c/1", "b/10", "b/2", "b/2-x"]


def test_what_has_no_partner_or_two_is_refused_by_name_and_other_files_are_not_records(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.jpg": b"",
            "a.txt": b"A cat.",
            "b.jpg": b"",
            "c.txt": b"Alone.",
            "d.jpg": b"",
            "d.png": b"",
            "d.txt": b"Two.",
        },
    )
    write(
        tmp_path,
        {"e.jpg": b"", "e.txt": b" \n", "f.jpg": b"", "f.txt": b"\xff", "g.jpg": b"", "README.md": b"x", "h.mp4": b"x"},
    )
    write(tmp_path, {"stats.json": b"{}", ".hidden.jpg": b"", ".git/x.jpg": b""})
    (tmp_path / "g.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "i.txt")
    write(tmp_path, {"i.jpg": b""})
    made = read(tmp_path)
    assert captions(made) == {"a.jpg": ("A cat.",)}
    assert refused(made) == {
        "b: b.jpg": "no_match",
        "c: c.txt": "no_match",
        "d: d.jpg": "bad_value",
        "e: the": "empty_answer",
        "f: f.txt,": "bad_text",
        "g: g.txt": "bad_value",
        "i: i.txt": "bad_value",
    }
    assert taken(made) == {".": 8}


def test_a_json_next_to_an_image_is_its_record(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"", "a.json": b'{"caption": "A cat.", "url": "x", "key": "1"}', "a.txt": b"A cat."})
    turns = b'{"messages": [{"role": "user", "content": "<image> What?"}, {"role": "assistant", "content": "A cup."}]}'
    write(
        tmp_path,
        {"b.jpg": b"", "b.json": turns, "c.jpg": b"", "c.json": b"{", "d.jpg": b"", "d.txt": b"x", "d.mp4": b""},
    )
    made = read(tmp_path)
    assert captions(made) == {"a.jpg": ("A cat.",), "b.jpg": ("A cup.",)}
    assert [item.reason for item in made if isinstance(item, Reject)] == ["broken_json", "unknown_key"]


def test_a_tar_of_images_and_texts_is_read_like_the_folder_of_them(tmp_path: Path) -> None:
    contents = {"a.jpg": b"", "a.txt": b" A cat.", "sub/b.png": b"", "sub/b.txt": b"B.", "c.jpg": b"", "d.txt": b"D."}
    write(tmp_path / "files", contents)
    as_tar(tmp_path / "a.tar", contents)
    of_folder = read(tmp_path / "files")
    request = request_for("chat", tmp_path, annotations=("a.tar",), images=("a.tar",))
    of_tar = list(ADAPTERS["chat"].read(request))
    assert captions(of_folder) == captions(of_tar) == {"a.jpg": ("A cat.",), "sub/b.png": ("B.",)}
    assert [item.reason for item in of_tar if isinstance(item, Reject)] == ["no_match", "missing_key"]
    assert request.tally.forms == {"caption": 3}


def test_a_folder_named_after_a_split_is_that_split(tmp_path: Path) -> None:
    write(tmp_path, {"train/a.jpg": b"", "train/a.txt": b"A.", "val/x/b.jpg": b"", "val/x/b.txt": b"B."})
    write(tmp_path, {"c_test.jpg": b"", "c_test.txt": b"C."})
    splits = {item.sources[0].record: item.official_split for item in read(tmp_path) if isinstance(item, Conversation)}
    assert splits == {"c_test": "", "train/a": "train", "val/x/b": "val"}


def test_a_link_to_a_folder_above_ends_and_a_folder_without_pairs_is_named(tmp_path: Path) -> None:
    write(tmp_path / "d", {"a.jpg": b"", "a.txt": b"A."})
    (tmp_path / "d/again").symlink_to(tmp_path / "d")
    assert len(read(tmp_path / "d")) == 1
    write(tmp_path / "none", {"a.jpg": b"", "notes.md": b""})
    with pytest.raises(DataError, match=r"none: is a folder without an image that has a \.txt"):
        read(tmp_path / "none")
    for adapter in ("llava", "ocr_vqa"):
        with pytest.raises(DataError, match="none: is a folder; expected a file of records"):
            list(ADAPTERS[adapter].read(replace(request_of(tmp_path / "none"), options={"image": "file"})))


def test_a_text_that_would_fill_the_memory_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_folders, "MAX_TEXT_BYTES", 10)
    write(tmp_path, {"a.jpg": b"", "a.txt": b"x" * 11, "b.jpg": b"", "b.txt": b"y" * 10})
    made = read(tmp_path)
    assert captions(made) == {"b.jpg": ("y" * 10,)}
    assert refused(made) == {"a: a.txt": "bad_value"}


def test_the_state_of_a_folder_changes_with_its_texts_and_names_alone(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": b"1", "a.txt": b"A cat.", "sub/b.jpg": b"", "sub/b.txt": b"B"})
    request = request_of(tmp_path)

    def states() -> tuple[Any, Any]:
        with input_digests(request) as digests:
            return stamp(tmp_path), digests.result()[0]

    first = states()
    assert first == states()
    assert first[1]["size"] == 7
    write(tmp_path, {"a.jpg": b"another image"})
    assert states() == first
    write(tmp_path, {"a.txt": b"A dog."})
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    changed = states()
    assert changed[0] != first[0]
    assert changed[1]["sha256"] != first[1]["sha256"]
    (tmp_path / "sub/b.jpg").rename(tmp_path / "sub/c.jpg")
    assert states()[0] != changed[0]


def test_many_files_take_the_memory_of_the_names_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 folders of 500 files: all names at once would be 0.7 MB."""

    class Entry:
        def __init__(self, name: str, is_folder: bool) -> None:
            self.name, self.is_folder = name, is_folder

        def is_dir(self) -> bool:
            return self.is_folder

    class Scan:
        def __init__(self, path: str) -> None:
            self.is_root = path == os.path.join(tmp_path, "")

        def __enter__(self) -> Any:
            if self.is_root:
                return (Entry(f"{number:05}", True) for number in range(20))
            return (Entry(f"{number:09}.{kind}", False) for number in range(250) for kind in ("jpg", "txt"))

        def __exit__(self, *_: object) -> None: ...

    for number in range(20):
        (tmp_path / f"{number:05}").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", Scan)
        tracemalloc.start()
        try:
            count = sum(len(sample.extensions) for sample in samples_below(tmp_path))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == 10_000
    assert peak < 350_000
