"""Files that are unusable as a whole end the build by name, never with a traceback."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shards
from preprocess.adapters.registry import ADAPTERS
from preprocess.errors import DataError
from tests.support.adapting import sample, written
from tests.support.bad_input import PHOTO, samples_of, talk, write_lines
from tests.support.commands import Done, dsvl_prep
from tests.support.image_archives import as_deflated_zip, as_hugging_face_parquet, as_json, as_tar, as_zip
from tests.support.paths import EXAMPLES
from tests.support.small_blends import (
    build,
    chat_blend,
    chat_record,
    jpeg,
    rejects_of,
    write_blend,
    write_images,
)

pytestmark = pytest.mark.usefixtures("no_hang")


def swapped(document: Any) -> str:
    return "[]" if isinstance(document, dict) else '{"rows": []}'


DAMAGE: dict[str, Callable[[bytes, Any], bytes]] = {
    "empty": lambda data, document: b"",
    "white space": lambda data, document: b" \n\n",
    "null": lambda data, document: b"null",
    "text": lambda data, document: b'"annotations"',
    "other container": lambda data, document: swapped(document).encode(),
    "no records": lambda data, document: b"{}" if isinstance(document, dict) else b"[]",
    "cut in the middle": lambda data, document: data[: len(data) // 2],
    "cut at the end": lambda data, document: data.rstrip()[:-1],
    "trailing text": lambda data, document: data + b"]",
    "nested too deeply": lambda data, document: b"[" * 100_000,
    "not UTF-8": lambda data, document: data[: len(data) // 2] + b"\xff\xfe" + data[len(data) // 2 :],
    "UTF-16": lambda data, document: data.decode().encode("utf-16"),
    "binary": lambda data, document: zlib.compress(data),
    "zeros": lambda data, document: bytes(4096),
}
WITH_A_PLACE = {"cut in the middle", "cut at the end", "trailing text"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_annotation_file_that_cannot_be_used_ends_the_build_by_name_for_every_adapter(
    tmp_path: Path, damage: str
) -> None:
    hurt: dict[str, Path] = {}
    for name in ADAPTERS:
        documents = sample(name)
        written(tmp_path / name, documents)
        hurt[name] = tmp_path / name / list(documents)[-1]
        document = documents[list(documents)[-1]]
        hurt[name].write_bytes(DAMAGE[damage](hurt[name].read_bytes(), document))
    entries = [{"name": name, "adapter": name, "root": name, "images": "."} for name in ADAPTERS]
    with pytest.raises(DataError) as caught:
        build(write_blend(tmp_path / "blend.yaml", entries, limits={"max_reject_share": 1.0}))
    errors = str(caught.value).splitlines()
    named = {name: [line for line in errors if line.startswith(f"dataset {name}: ")] for name in ADAPTERS}
    for name, lines in named.items():
        if (damage == "no records" and len(sample(name)) > 1) or (damage == "other container" and name == "chat"):
            continue  # the other files have records, or the object is taken for a line, which is a reject
        assert len(lines) == 1, (name, errors)
        # Joins that miss one side cannot know which file was to be it; they name the folder or the other side.
        assert str(tmp_path / name if name in ("llava_otter_blend", "vqa_v2") else hurt[name]) in lines[0]
        if damage in WITH_A_PLACE:
            assert ", line " in lines[0]
            assert ", column " in lines[0]
    assert not [path for path in (tmp_path / "build").rglob("*") if path.suffix in (".tar", ".partial")]
    assert not (tmp_path / "build/manifest.json").exists()


@pytest.mark.parametrize(
    ("file", "data", "expected"),
    [
        ("chat.json", b'[\n{"id": 1},\n{"id": 2,}\n]', "chat.json, line 3, column 10"),
        ("chat.json", b"", "chat.json: is neither a JSON array nor JSON lines"),
        ("chat.jsonl", b"", "chat.jsonl: "),
        ("chat.jsonl", b"\xfd\xfe\n\n\x00", "2 of 2 records are rejects (broken_json 2)"),
        ("chat.parquet", b"PAR1 cut off", "chat.parquet"),
    ],
)
def test_the_command_line_says_which_file_with_code_1_and_no_traceback(
    tmp_path: Path, file: str, data: bytes, expected: str
) -> None:
    chat_blend(tmp_path, [])
    (tmp_path / "mine/chat.jsonl").unlink()
    (tmp_path / "mine" / file).write_bytes(data)
    done = run_command(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr


def run_command(folder: Path, *more: str) -> Done:
    return dsvl_prep("build", "--blend", folder / "blend.yaml", "--out", folder / "build", *more)


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link", "loop"])
def test_an_annotation_path_that_is_not_a_file_is_named_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    blend = chat_blend(tmp_path, [chat_record(0)])
    path = tmp_path / "mine/more.jsonl"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("more.jsonl" if kind == "loop" else "nowhere.jsonl")
    with pytest.raises(DataError, match=r"more\.jsonl: "):
        build(blend)


def test_parquet_rows_that_cannot_be_read_are_rejects_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"messages": talk("Why?", "So.")["messages"]}] * 5)
    times = pa.array([0, 1, 2**62, 2, -(2**62)], pa.timestamp("us"))
    bytes_of = pa.py_buffer(struct.pack("<6i", 0, 1, 2, 3, 4, 5)), pa.py_buffer(b"ab\xffde")
    texts = pa.StringArray.from_buffers(5, *bytes_of)
    blend = chat_blend(tmp_path, [], limits={"max_reject_share": 1.0})
    (tmp_path / "mine/chat.jsonl").unlink()
    for key in ("group", "other"):
        pq.write_table(table.append_column(key, times), tmp_path / f"mine/times-{key}.parquet")
        pq.write_table(table.append_column(key, texts), tmp_path / f"mine/texts-{key}.parquet")
    report = build(blend).datasets["mine"]
    rejects = {(reject["file"], reject["record"], reject["reason"]) for reject in rejects_of(tmp_path / "build")}
    assert rejects == {
        ("texts-group.parquet", "2", "bad_text"),
        *(("times-group.parquet", str(number), "wrong_type") for number in range(5)),
    }
    assert (report.records, report.members) == (20, 14)


def good_images() -> dict[str, bytes]:
    return {f"{number}.jpg": jpeg(number) for number in range(4)}


ARCHIVES: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "base64.json": as_json,
    "stored.zip": as_zip,
    "deflated.zip": as_deflated_zip,
    "plain.tar": as_tar,
    "rows.parquet": as_hugging_face_parquet,
}


def archive_blend(folder: Path, names: Sequence[str]) -> Path:
    """One chat dataset for each kind of archive, all with the same records."""
    entries = []
    for kind in ARCHIVES:
        dataset = kind.replace(".", "-")
        root = folder / dataset
        root.mkdir(parents=True, exist_ok=True)
        write_lines(root / "chat.jsonl", [{**chat_record(0, images=[name]), "id": name} for name in names])
        entries.append({"name": dataset, "adapter": "chat", "root": dataset, "images": kind})
        entries[-1]["annotations"] = "chat.jsonl"
    return write_blend(folder / "blend.yaml", entries, limits={"max_reject_share": 1.0})


def test_a_bad_image_in_an_archive_is_a_reject_of_its_record_alone(tmp_path: Path) -> None:
    images = {**good_images(), "cut.jpg": PHOTO[:3000], "empty.jpg": b"", "text.jpg": b"no picture"}
    expected = {
        "cut.jpg": "image_unreadable",
        "empty.jpg": "image_unreadable",
        "text.jpg": "image_unreadable",
        "none.jpg": "image_missing",
        "../0.jpg": "image_path",
        "/0.jpg": "image_path",
    }
    blend = archive_blend(tmp_path, [*images, *(name for name in expected if name not in images)])
    for kind, write in ARCHIVES.items():
        write(tmp_path / kind.replace(".", "-") / kind, images)
    path = tmp_path / "base64-json/base64.json"
    texts = json.loads(path.read_text())
    path.write_text(json.dumps({**texts, "cut.jpg": "*no base64*", "empty.jpg": 5, "text.jpg": None}))
    path = tmp_path / "stored-zip/stored.zip"
    data = bytearray(path.read_bytes())
    data[data.index(PHOTO[:3000]) + 1500] ^= 1  # its checksum in the directory is now wrong
    path.write_bytes(data)
    report = build(blend)
    for name, dataset in report.datasets.items():
        assert (dataset.records, dataset.members) == (len(images) + 3, 4)
        rejects = {
            reject["record"]: reject["reason"] for reject in rejects_of(tmp_path / "build") if reject["dataset"] == name
        }
        assert rejects == expected
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
    per_dataset: dict[str, list[Any]] = {name: [] for name in report.datasets}
    for (owner, _), content in sorted(samples_of(tmp_path / "build").items()):
        per_dataset[owner].append((*content[:4], content[4]["images"]))
    first, *others = per_dataset.values()
    assert all(other == first for other in others)


@pytest.mark.parametrize("keep", [0, 3, 0.1, 0.5, 0.9, -1])
def test_an_archive_that_is_cut_off_ends_the_build_by_name(tmp_path: Path, keep: float) -> None:
    blend = archive_blend(tmp_path, ["0.jpg"])
    for kind, write in ARCHIVES.items():
        path = tmp_path / kind.replace(".", "-") / kind
        write(path, good_images())
        data = path.read_bytes()
        if kind == "plain.tar":
            data = data[: data.rindex(b"\xff\xd9") + 2]  # without its end, which is zeros alone
        path.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(DataError) as caught:
        build(blend)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(ARCHIVES)
    for kind in ARCHIVES:
        assert any(str(tmp_path / kind.replace(".", "-") / kind) in line for line in lines), lines
    assert not list((tmp_path / "build").rglob("*.tar"))


def test_a_test_split_without_answers_is_refused_by_name(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = []
    for name in ("aokvqa", "vqa_v2"):
        shutil.copytree(EXAMPLES / name, tmp_path / name / name)
        entries.append({"name": name, "adapter": name, "root": name, "images": "."})
    asked = tmp_path / "aokvqa/aokvqa/annotations/aokvqa_v1p0_test.json"
    keys = ("question_id", "image_id", "question", "choices")
    records = json.loads(asked.with_name("aokvqa_v1p0_train.json").read_text())
    asked.write_text(json.dumps([{"split": "test"} | {key: entry[key] for key in keys} for entry in records]))
    entries[0]["annotations"] = "aokvqa/annotations/aokvqa_v1p0_test.json"
    questions = next((tmp_path / "vqa_v2").rglob("*_questions.json"))
    document = json.loads(questions.read_text())
    for number, entry in enumerate(document["questions"]):
        entry["question_id"] = 900000 + number
    tests = questions.with_name("v2_OpenEnded_mscoco_test2015_questions.json")
    tests.write_text(json.dumps({**document, "data_subtype": "test2015"}))
    with pytest.raises(DataError) as caught:
        build(write_blend(tmp_path / "blend.yaml", entries))
    errors = str(caught.value).splitlines()
    for path in (asked, tests):
        assert any(str(path) in line and "test split" in line for line in errors), errors


def test_limits_name_what_was_got_and_too_many_rejects_end_with_code_1(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 4)
    records = [
        chat_record(0, images=names[:2]),
        {**talk("<image>" * 3, "Three.", images=names[:3]), "id": "crowd"},
        {**talk("Why?", "Because " * 300), "id": "long"},
        chat_record(1, images=names[:1], rounds=40),
    ]
    chat_blend(tmp_path, records, limits={"max_images": 2, "max_length": 200})
    done = run_command(tmp_path)
    assert done.returncode == 1
    assert "dataset mine: 2 of 4 records are rejects" in done.stderr
    for reason in ("too_many_images 1", "too_long 1", "limits.max_reject_share allows 0.2"):
        assert reason in done.stderr
    rejects = {reject["record"]: reject for reject in rejects_of(tmp_path / "build")}
    assert rejects["crowd"]["reason"] == "too_many_images"
    assert "3 images" in rejects["crowd"]["detail"]
    assert rejects["long"]["reason"] == "too_long"
    assert "limits.max_length is 200" in rejects["long"]["detail"]
    done = run_command(tmp_path, "--set", "limits.max_reject_share=0.5")
    assert done.returncode == 0
    (_, cut), *_ = [(name, one) for (_, name), one in samples_of(tmp_path / "build").items() if name == "chat/r1"]
    assert cut[4]["notes"] == ["rounds_cut"]
    assert len(cut[1]) + 15 <= 200
