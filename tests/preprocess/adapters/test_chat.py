"""One's own conversations: three file kinds, two forms, images by path or inside the file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.adapters.groups import image_groups
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Image, RecordSource, Reject, Turn, embedded_name
from preprocess.errors import DataError
from preprocess.images.stores import open_stores, prepare_store
from tests.support.adapting import CHAT, Made, adapted, conversations, rejects, request_for
from tests.support.image_archives import as_tar

ONE, TWO = Image(name="1.jpg"), Image(name="2.jpg")


def talk(question: Any = "<image>\nWhat?", answer: Any = "That.", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": ["1.jpg"], **more}


def read(root: Path, *records: Any, **options: Any) -> Made:
    return adapted("chat", root, {"a.json": list(records)}, images=(".",), **options)


def only(made: Made) -> Conversation:
    (item,) = made
    assert isinstance(item, Conversation), item
    return item


def table(root: Path, records: list[dict[str, Any]], *, listed: bool = True) -> Made:
    pq.write_table(pa.Table.from_pylist(records), root / "t.parquet")
    images = ("t.parquet", "images") if listed else (".",)
    return list(ADAPTERS["chat"].read(request_for("chat", root, annotations=("t.parquet",), images=images)))


def test_both_forms_are_read_with_group_and_split(tmp_path: Path) -> None:
    made = conversations(adapted("chat", tmp_path, CHAT, images=(".",)))
    assert made[0] == Conversation(
        id="talk/a",
        turns=(
            Turn(role="system", parts=("Be brief.",)),
            Turn(role="user", parts=(Image(name="cats/1.jpg"), "Who is this?")),
            Turn(role="assistant", parts=("A cat.",)),
            Turn(role="user", parts=("And", TWO)),
            Turn(role="assistant", parts=("A dog.",)),
        ),
        sources=(RecordSource(file="talk.json", record="a"),),
        groups=("cats/1.jpg", f"{tmp_path.name}/2.jpg", "group:film 7"),
        official_split="val",
    )
    assert (made[1].id, made[1].groups) == ("talk/2", ())
    assert made[2].turns[0].parts == (Image(name="3.jpg"), Image(name="4.jpg"), "Compare.")
    assert (made[2].id, made[2].notes) == ("talk/#2", ("image_placed_first",))


def test_the_same_records_are_read_from_json_lines_and_parquet(tmp_path: Path) -> None:
    records = [talk(id="a", group="v"), talk("Who?", "Me.", images=[], id="b", group=None)]
    (tmp_path / "array").mkdir()
    expected = [item.turns for item in conversations(read(tmp_path / "array", *records))]
    lines = "\n\n".join(json.dumps(record) for record in records) + "\n"
    for name in ("a.jsonl", "b.json"):
        assert [item.turns for item in conversations(adapted("chat", tmp_path, {name: lines}))] == expected
    assert [item.turns for item in conversations(table(tmp_path, records, listed=False))] == expected


@pytest.mark.parametrize(
    ("content", "images", "expected"),
    [
        ([{"type": "text", "text": " What? "}, {"type": "image"}], ["1.jpg"], ("What?", ONE)),
        ([{"type": "image", "image": "2.jpg"}, {"type": "text", "text": "What?"}], None, (TWO, "What?")),
        ([{"type": "image", "path": "2.jpg"}, {"type": "image"}], ["1.jpg"], (TWO, ONE)),
        ([{"type": "image", "url": "2.jpg", "image": None}], [], (TWO,)),
        ([{"type": "image_url", "image_url": {"url": "2.jpg"}}], None, (TWO,)),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], None, ("a b",)),
        ([{"type": "text", "text": "What is <image>?"}], ["1.jpg"], ("What is ", ONE, "?")),
        ([{"type": "image_url", "image_url": "2.jpg"}], None, (TWO,)),
        ([{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "2.jpg"}], None, ("a", TWO)),
        ([{"image": "2.jpg"}, {"text": "What?"}], None, (TWO, "What?")),
        ([{"type": "image", "index": 1}, {"type": "image", "index": 0}], ["1.jpg", "2.jpg"], (TWO, ONE)),
        ([{"type": "image", "image": "1.jpg"}, {"type": "text", "text": "What?"}], ["1.jpg"], (ONE, "What?")),
        ("<image>What?<image>", ["1.jpg", {"path": "2.jpg"}], (ONE, "What?", TWO)),
    ],
)
def test_parts_and_marks_become_images_in_order(
    tmp_path: Path, content: Any, images: Any, expected: tuple[str | Image, ...]
) -> None:
    assert only(read(tmp_path, talk(content, images=images))).turns[0].parts == expected


WORDS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "wrong_type"),
        ([], "wrong_type"),
        ({}, "missing_key"),
        ({"messages": None}, "missing_key"),
        ({"messages": {}}, "wrong_type"),
        ({"messages": []}, "no_answer"),
        ({"messages": [{"role": "user"}]}, "missing_key"),
        ({"messages": [{"content": "a"}]}, "missing_key"),
        ({"messages": [WORDS[0], WORDS[2], WORDS[1]]}, "role_order"),
        ({"messages": WORDS[1:2]}, "no_answer"),
        ({"messages": WORDS[:1]}, "no_answer"),
        (talk(answer=None), "wrong_type"),
        (talk(answer=""), "empty_answer"),
        (talk(answer="\ud800"), "bad_text"),
        (talk(answer=[{"type": "text", "text": "\ud800"}]), "bad_text"),
        (talk(answer=[{"type": "image"}]), "image_in_answer"),
        (talk(answer=[{"type": "image_url", "image_url": {"url": "1.jpg"}}]), "image_in_answer"),
        (talk([], images=None), "empty_question"),
        (talk([3]), "wrong_type"),
        (talk([{"text": "a", "image": "1.jpg"}]), "missing_key"),
        (talk([{"type": "video"}]), "unread_media"),
        (talk([{"type": "thinking", "text": "a"}]), "bad_value"),
        (talk([{"type": "text", "text": 3}]), "wrong_type"),
        (talk([{"type": "image_url", "image_url": 7}]), "wrong_type"),
        (talk([{"type": "image", "image": 3}]), "wrong_type"),
        (talk("<image><image>"), "image_count"),
        (talk([{"type": "image", "image": "2.jpg"}]), "image_count"),
        (talk([{"type": "image", "image": "s3://bucket/1.jpg"}], images=None), "image_path"),
        (talk([{"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}], images=None), "image_unreadable"),
        (
            talk([{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}], images=None),
            "image_unreadable",
        ),
        (talk(images=["ftp://example.org/1.jpg"]), "image_path"),
        (talk(images=[""]), "image_path"),
        (talk(images=[None]), "wrong_type"),
        (talk(images=[{}]), "wrong_type"),
        (talk(images=7), "wrong_type"),
        (talk(image="2.jpg"), "bad_value"),
        (talk(group=1.5), "wrong_type"),
        (talk(split="holdout"), "bad_value"),
        (talk(split=True), "wrong_type"),
        (talk(images=["1.jpg"] * 9, question="What?"), "too_many_images"),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    made = read(tmp_path, record, talk("Fine?", "Fine.", images=None, id="b"))
    assert [name for _, name in rejects(made)] == [reason]
    assert conversations(made)[-1].id == "a/b"


@pytest.mark.parametrize("url", ["https://example.org/a/000000000101.jpg?w=9", "HTTP://example.org/1"])
def test_an_http_url_is_the_name_of_an_image(tmp_path: Path, url: str) -> None:
    (item,) = conversations(read(tmp_path, talk(images=[url])))
    assert item.images == (Image(name=url),)


def test_another_url_is_refused_with_the_next_step(tmp_path: Path) -> None:
    (item,) = read(tmp_path, talk(images=["ftp://example.org/1.jpg"]))
    assert isinstance(item, Reject)
    assert "download it first" in item.detail


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


def test_bytes_as_base64_text_are_an_image_in_any_file(tmp_path: Path) -> None:
    (item,) = conversations(read(tmp_path, talk(images=[{"bytes": "aGVsbG8="}])))
    assert item.images == (Image(name=embedded_name(b"hello")),)


def test_a_file_named_from_two_folders_has_a_group_in_common(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    records = [talk(images=[name]) for name in ("a.jpg", "images/a.jpg", "./a.jpg", "b.jpg", "cats/a.jpg")]
    made = conversations(adapted("chat", tmp_path, {"a.json": records}))
    bare, below, dotted, other, cats = [{*item.groups} for item in made]
    assert bare == dotted == {f"{tmp_path.name}/a.jpg", "images/a.jpg"}
    assert below == {"images/a.jpg"}
    assert not (other | cats) & (bare | below)
    # Another dataset that knows only one of the folders.
    alone = conversations(adapted("chat", tmp_path / "images", {"b.json": [talk(images=["a.jpg"])]}))
    assert {*alone[0].groups} == below


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


def test_repeated_ids_are_refused_or_kept(tmp_path: Path) -> None:
    assert rejects(read(tmp_path, talk(id="x"), talk(id="x"))) == [("x", "duplicate_id")]
    assert [item.id for item in conversations(read(tmp_path, talk(id="x"), talk(id="x"), duplicate_ids="keep"))] == [
        "a/x",
        "a/x#1",
    ]
