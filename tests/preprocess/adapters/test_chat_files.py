"""The files of chat: JSON Lines, Parquet with the images inside, and WebDataset tars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.groups import image_groups
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Image, Reject
from preprocess.errors import DataError
from preprocess.images.stores import open_stores, prepare_store
from tests.support.adapting import Made, adapted, conversations, rejects, request_for
from tests.support.chat_records import ONE, only, read_chat, talk
from tests.support.image_archives import as_tar


def table(root: Path, records: list[dict[str, Any]], *, listed: bool = True) -> Made:
    pq.write_table(pa.Table.from_pylist(records), root / "t.parquet")
    images = ("t.parquet", "images") if listed else (".",)
    return list(ADAPTERS["chat"].read(request_for("chat", root, annotations=("t.parquet",), images=images)))


def test_the_same_records_are_read_from_json_lines_and_parquet(tmp_path: Path) -> None:
    records = [talk(id="a", group="v"), talk("Who?", "Me.", images=[], id="b", group=None)]
    (tmp_path / "array").mkdir()
    expected = [item.turns for item in conversations(read_chat(tmp_path / "array", *records))]
    lines = "\n\n".join(json.dumps(record) for record in records) + "\n"
    for name in ("a.jsonl", "b.json"):
        assert [item.turns for item in conversations(adapted("chat", tmp_path, {name: lines}))] == expected
    assert [item.turns for item in conversations(table(tmp_path, records, listed=False))] == expected


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"messages": [}', "line 3, column 15"),
        ("oops", "line 3, column 1"),
        ('{"messages": "a', "line 3, column 14"),
        ("[" * 100_000, "line 3, column 1"),
        ("9" * 5000, "line 3, column 1"),
    ],
)
def test_a_broken_line_is_refused_with_its_place_and_the_rest_is_read(tmp_path: Path, line: str, place: str) -> None:
    good = json.dumps(talk())
    made = adapted("chat", tmp_path, {"a.jsonl": f"{good}\n\n{line}\n{good}"}, images=(".",))
    assert rejects(made) == [("1", "broken_json")]
    assert next(item for item in made if isinstance(item, Reject)).detail.startswith(place)
    assert [item.sources[0].record for item in conversations(made)] == ["0", "2"]


def test_a_line_that_is_not_utf8_is_refused_alone(tmp_path: Path) -> None:
    good = json.dumps(talk()).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b'\n{"a": "\xff"}\n' + good)
    made = list(ADAPTERS["chat"].read(request_for("chat", tmp_path, images=(".",))))
    assert rejects(made) == [("1", "broken_json")]
    assert len(made) == 3


@pytest.mark.parametrize("text", ["", '{\n "version": 2\n}', '{"a": 1', "7"])
def test_a_json_file_of_another_form_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        adapted("chat", tmp_path, {"a.json": text})


def test_images_inside_a_parquet_file_are_named_by_row_column_and_index(tmp_path: Path) -> None:
    images = [{"bytes": b"one", "path": "a.png"}, {"bytes": b"two", "path": "000000000009.jpg"}]
    records = [talk("No picture", images=[]), talk("<image> or <image>?", images=images)]
    item = conversations(table(tmp_path, records))[1]
    assert item.images == (Image(name="1/images/0", store=0), Image(name="1/images/1", store=0))
    assert item.groups == ("bytes:911faba7321fe1a0", "coco:9")  # XXH3 of "one"


def test_an_image_embedded_in_two_rows_has_one_group(tmp_path: Path) -> None:
    records = [
        talk(images=[{"bytes": data, "path": path}])
        for data, path in [(b"same", "a.png"), (b"same", None), (b"other", "a.png"), (b"same", "000000000009.jpg")]
    ]
    first, second, third, coco = conversations(table(tmp_path, records))
    assert first.groups == second.groups
    assert not {*first.groups} & {*third.groups}
    assert coco.groups == ("coco:9",)


def test_a_parquet_file_is_its_own_store_by_default(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        mixed = [talk(images=[{"bytes": name.encode(), "path": None}]), talk(images=[{"bytes": None, "path": "1.jpg"}])]
        pq.write_table(pa.Table.from_pylist(mixed), tmp_path / f"{name}.parquet")
    pq.write_table(pa.Table.from_pylist([talk()]), tmp_path / "paths.parquet")
    (tmp_path / "images" / "1.jpg").write_bytes(b"in a folder")
    request = request_for("chat", tmp_path)
    for store in request.images:
        prepare_store(store, tmp_path / "cache")
    stores = open_stores(request.images, tmp_path / "cache")
    shown = [stores.read(item.images[0]) for item in conversations(list(ADAPTERS["chat"].read(request)))]
    assert shown == [b"a", b"in a folder", b"b", b"in a folder", b"in a folder"]


def test_an_embedded_image_without_its_store_is_refused_with_the_next_step(tmp_path: Path) -> None:
    records = [talk(images=[{"bytes": b"one", "path": "a.png"}])]
    (item,) = table(tmp_path, records, listed=False)
    assert isinstance(item, Reject)
    assert item.reason == "image_missing"
    assert item.detail.endswith("add t.parquet to the dataset's `images`")


def test_the_parquet_files_of_a_folder_do_not_multiply_the_groups(tmp_path: Path) -> None:
    images = tuple(tmp_path / f"{number}.parquet" for number in range(100))
    assert image_groups((tmp_path, *images), "a.jpg") == (f"{tmp_path.name}/a.jpg",)


def test_an_image_column_may_hold_bytes_or_only_paths(tmp_path: Path) -> None:
    plain = {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]}
    assert only(table(tmp_path, [{**plain, "image": b"one"}])).images == (Image(name="0/image/0", store=0),)
    assert only(table(tmp_path, [{**plain, "image": {"bytes": None, "path": "1.jpg"}}])).images == (ONE,)


def test_a_parquet_row_that_is_not_utf8_is_refused_alone(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xffb")]
    )
    messages = pa.array([talk()["messages"]] * 2)
    pq.write_table(pa.table({"id": text, "messages": messages, "images": [["1.jpg"]] * 2}), tmp_path / "t.parquet")
    made = list(ADAPTERS["chat"].read(request_for("chat", tmp_path, annotations=("t.parquet",), images=(".",))))
    assert rejects(made) == [("0", "bad_text")]
    assert conversations(made)[0].id == "t/b"


def test_a_file_that_is_not_a_parquet_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as Parquet"):
        adapted("chat", tmp_path, {"t.parquet": "nothing"})


def test_a_webdataset_tar_is_read_with_its_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"outside")
    for shard in ("0.tar", "1.tar"):
        files = {"a.json": json.dumps(talk(images=["a.jpg"])).encode(), "a.jpg": shard.encode()}
        as_tar(tmp_path / shard, files)
    stores = (".", "0.tar", "1.tar")
    request = request_for("chat", tmp_path, annotations=("*.tar",), images=stores)
    made = conversations(list(ADAPTERS["chat"].read(request)))
    for path in request.images:
        prepare_store(path, tmp_path / "cache")
    opened = open_stores(request.images, tmp_path / "cache")
    assert [opened.read(item.images[0]) for item in made] == [b"0.tar", b"1.tar"]
    assert not {*made[0].groups} & {*made[1].groups}
