"""Evaluation dialogues are read strictly: every fault is named with its place, and no image is outside its root."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import TrainError
from trainer.evaluation.dialogues import Dialogues, LeftOut, read_dialogues


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("cats/a.jpg", "cats/b.jpg", "a name.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
    (tmp_path / "secret.jpg").write_bytes(b"picture")
    return folder


def test_dialogues_keep_their_order_questions_and_images(root: Path) -> None:
    read = _read(
        root,
        {
            "two": [["Which? ", "./cats/a.jpg cats/b.jpg"], ["Why?"], ["And now?", "./cats/a.jpg"]],
            "one": [["What?", ["a name.jpg"]]],
            "none": [["Hello?"]],
        },
    )
    assert [dialogue.id for dialogue in read.complete] == ["two", "one", "none"]
    assert read.left_out == ()
    two, one, none = read.complete
    assert [round_.question for round_ in two.rounds] == ["Which?", "Why?", "And now?"]
    assert [[image.name for image in round_.images] for round_ in two.rounds] == [
        ["./cats/a.jpg", "cats/b.jpg"],
        [],
        ["./cats/a.jpg"],
    ]
    assert [image.path for image in two.images] == [root / "cats/a.jpg", root / "cats/b.jpg", root / "cats/a.jpg"]
    assert [image.path for image in one.images] == [root / "a name.jpg"]
    assert none.images == ()


def test_a_dialogue_cannot_be_changed(root: Path) -> None:
    [dialogue] = _read(root, {"a": [["Hello?"]]}).complete
    with pytest.raises(FrozenInstanceError):
        dialogue.id = "b"  # type: ignore[misc]
    assert {dialogue: "records can be keys"}


def test_leading_folders_of_the_file_can_be_left_out(root: Path) -> None:
    content = {"a": [["What?", "./eval/eval_data/cats/a.jpg"]]}
    [dialogue] = _read(root, content, prefix="./eval/eval_data/").complete
    assert dialogue.images[0].path == root / "cats/a.jpg"
    assert dialogue.images[0].name == "./eval/eval_data/cats/a.jpg"
    with pytest.raises(TrainError, match=r"does not begin with the prefix 'evil'"):
        _read(root, content, prefix="evil")


def test_a_missing_image_is_named_with_the_prefix_that_would_find_it(root: Path) -> None:
    with pytest.raises(TrainError, match=r"dialogue 'a': no file ./eval/cats/a.jpg in .* with --prefix eval$"):
        _read(root, {"a": [["What?", "./eval/cats/a.jpg"]]})
    with pytest.raises(TrainError, match=r"no file eval/a/0.jpg, eval/cats/a.jpg in .* with --prefix eval$"):
        _read(root, {"a": [["What?", "eval/cats/a.jpg eval/a/0.jpg"]]})
    with pytest.raises(TrainError, match=r"no file cats/c.jpg, cats/d.jpg in .*or set --leave-out"):
        _read(root, {"a": [["What?", "cats/d.jpg cats/a.jpg cats/c.jpg"]]})
    with pytest.raises(TrainError, match=r"no file cats in"):
        _read(root, {"a": [["What?", "cats"]]})
    with pytest.raises(TrainError, match=r"no file x+ in"):  # longer than a name can be
        _read(root, {"a": [["What?", "x" * 5000]]})


def test_dialogues_that_lack_images_are_left_out_if_asked_and_reported(root: Path) -> None:
    content = {"a": [["What?", "cats/c.jpg"], ["And?", "cats/c.jpg cats/a.jpg"]], "b": [["What?", "cats/a.jpg"]]}
    read = _read(root, content, incomplete="leave_out")
    assert [dialogue.id for dialogue in read.complete] == ["b"]
    assert read.left_out == (LeftOut(id="a", missing=("cats/c.jpg",)),)


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "cats/../../secret.jpg", "/etc/passwd", "C:/a.jpg", "cats\\a.jpg", ".", "a\0.jpg", "\ud800.jpg"],
)
def test_a_path_that_could_leave_its_root_is_refused_unseen(root: Path, name: str) -> None:
    with pytest.raises(TrainError, match=r"dialogue 'a', round 1: the image .*; expected a path in"):
        _read(root, {"a": [["What?", [name]]]}, incomplete="leave_out")


def test_a_link_that_leads_out_of_the_root_is_refused(root: Path) -> None:
    (root / "out.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "far").symlink_to(root.parent)
    (root / "in.jpg").symlink_to(root / "cats/a.jpg")
    assert _read(root, {"a": [["What?", "in.jpg"]]}).complete
    for name in ("out.jpg", "far/secret.jpg", "far/absent.jpg"):
        with pytest.raises(TrainError, match=r"is a link to a file outside"):
            _read(root, {"a": [["What?", name]]}, incomplete="leave_out")


def test_a_root_that_is_itself_a_link_is_fine(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert _read(link, {"a": [["What?", "cats/a.jpg"]]}).complete


def test_a_link_in_a_circle_is_refused(root: Path) -> None:
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    with pytest.raises(TrainError, match=r"circle.jpg"):
        _read(root, {"a": [["What?", "circle.jpg"]]})


@pytest.mark.parametrize(
    ("rounds", "problem"),
    [
        ([], r"dialogue 'a': got \[\]; expected a list of one or more rounds"),
        ("What?", r"dialogue 'a': got 'What\?'; expected a list"),
        ([[]], r"round 1: got \[\]; expected \[question\]"),
        ([["What?"], ["What?", "cats/a.jpg", "cats/b.jpg"]], r"round 2: got .*; expected \[question\] or"),
        ([{"question": "What?"}], r"round 1: got .*expected \[question\]"),
        ([["  "]], r"round 1: its question is '  '; expected text that is not blank"),
        ([[None]], r"round 1: its question is None"),
        ([["half \ud800"]], r"round 1: its question is 'half \\ud800'"),
        ([["What?", " "]], r"round 1: the text for its images is empty"),
        ([["What?", 7]], r"round 1: its images are 7; expected text or a list of texts"),
        ([["What?", ["cats/a.jpg", 7]]], r"round 1: its images are .*; expected text or a list"),
    ],
)
def test_a_malformed_round_is_named(root: Path, rounds: Any, problem: str) -> None:
    with pytest.raises(TrainError, match=problem):
        _read(root, {"a": rounds})


def test_all_problems_are_reported_at_once_and_many_are_counted(root: Path) -> None:
    with pytest.raises(TrainError) as caught:
        _read(root, {"a": [[1]], "b": [["What?", "../x.jpg"]], " ": [["What?"]]})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(str(root.parent / "eval.json") in line for line in lines)
    with pytest.raises(TrainError, match=r"and 5 more problems"):
        _read(root, {"a": [[1]] * 25})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", r"got \[\]; expected an object"),
        (b"{}", "got {}; expected an object of one or more dialogues"),
        (b'{"a": "\xff"}', r"is not UTF-8 \(byte 7\)"),
        (b'{"a": [["x"]], "a": [["y"]]}', "dialogue 'a': is in the file more than once"),
    ],
)
def test_a_file_of_another_form_is_refused(root: Path, content: bytes, problem: str) -> None:
    path = root.parent / "eval.json"
    path.write_bytes(content)
    with pytest.raises(TrainError, match=problem):
        read_dialogues(path, root=root)


def test_a_byte_order_mark_is_not_a_fault(root: Path) -> None:
    path = root.parent / "eval.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [["x"]]}')
    assert read_dialogues(path, root=root).complete


def test_absent_files_and_folders_are_named(root: Path) -> None:
    with pytest.raises(TrainError, match=r"absent.json: cannot be read: No such file"):
        read_dialogues(root / "absent.json", root=root)
    with pytest.raises(TrainError, match=r"nowhere: is not a folder; expected the one with the images"):
        read_dialogues(root / "absent.json", root=root / "nowhere")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        read = _read(folder, content, path=folder / "any.json")
    except TrainError:
        return
    assert [dialogue.id for dialogue in read.complete] == list(content)


def _read(root: Path, content: Any, *, path: Path | None = None, **options: Any) -> Dialogues:
    path = path or root.parent / "eval.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_dialogues(path, root=root, **options)
