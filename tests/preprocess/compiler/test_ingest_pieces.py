"""A dataset that is read in pieces comes out as from one task, whatever its records are and wherever it is cut."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dst.common.progress import Silent
from preprocess.adapters.lookup import adapter_origin, find_adapter
from preprocess.compiler import ingest_pieces, ingest_stage
from preprocess.compiler.carried import Carrier, run_carried
from preprocess.compiler.ingest import Ingested, ingest_task
from preprocess.compiler.task_runner import TaskRunner
from preprocess.filters.rules import Filter, Range
from tests.support.adapting import request_for, request_of
from tests.support.cut_datasets import check_same, files_of_spool, read_in_pieces, read_whole, small_parts
from tests.support.extensions import ADAPTER, on_path, write_module
from tests.support.small_blends import build, chat_record, files_of, image_blend, jpeg

QUIET = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60
)
WORDS = st.sampled_from(
    [
        "Yes.",
        '"}, {"',
        "}]}, {",
        "\\",
        '\\"',
        "[[{",
        "é",
        "\U0001f600",
        "a\nb",
        "",
        "\ud800",
        "<image>",
        '\\\\"}, {"id": 1',
    ]
)
RECORDS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["a", "b", "c", "#1", "a#3", 7, 2**70, None, ""]),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": WORDS | st.integers()}),
            max_size=3,
        )
        | st.builds(lambda words: [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": words}], WORDS),
        "source": st.text(max_size=3) | st.floats(),
        "split": st.sampled_from(["train", "test", "other"]),
    },
) | st.sampled_from([{}, [], [{"id": 1}], None])
STYLES = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def text_of(record: object, **style: Any) -> bytes:
    return json.dumps(record, **style).encode("utf-8", "surrogatepass")


def chat_request(root: Path, data: bytes, name: str = "chat.jsonl", **options: Any) -> Any:
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(data)
    return request_for("chat", root, annotations=("*",), **options)


def talk(number: int, **more: Any) -> dict[str, Any]:
    return {**chat_record(number), **more}


def as_array(records: Sequence[object], **style: Any) -> bytes:
    return text_of(list(records), **style)


def as_lines(records: Sequence[object]) -> bytes:
    return b"".join(text_of(record) + b"\n" for record in records)


@QUIET
@given(
    records=st.lists(RECORDS, max_size=12),
    style=STYLES,
    part=st.sampled_from([1, 40, 150]),
    window=st.sampled_from([1, 7, 64, 4096]),
    keep=st.booleans(),
    around=st.sampled_from(
        [(b"", b""), (b"\xef\xbb\xbf", b""), (b"\n ", b" \r\n"), (b"", b"]"), (b"[", b"]"), (b"", b"x"), (b"[1,", b"]")]
    ),
)
def test_any_array_is_the_same_in_pieces(
    tmp_path: Path,
    records: list[Any],
    style: dict[str, Any],
    part: int,
    window: int,
    keep: bool,
    around: tuple[bytes, bytes],
) -> None:
    data = around[0] + as_array(records, **style) + around[1]
    request = chat_request(tmp_path / "mine", data, "chat.json", duplicate_ids="keep" if keep else "reject")
    with small_parts(part, window):
        check_same(request, tmp_path)


@QUIET
@given(
    lines=st.lists(
        RECORDS.map(text_of) | st.sampled_from([b"", b" \t", b"{", b"\x0b", b"\xff", b"[1]", b'{"id": 1}{']),
        max_size=14,
    ),
    end=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    part=st.sampled_from([1, 40, 150]),
    window=st.sampled_from([1, 7, 64, 4096]),
    keep=st.booleans(),
    mark=st.booleans(),
)
def test_any_lines_are_the_same_in_pieces(
    tmp_path: Path, lines: list[bytes], end: bytes, last: bool, part: int, window: int, keep: bool, mark: bool
) -> None:
    data = b"\xef\xbb\xbf" * mark + end.join(lines) + end * last
    request = chat_request(tmp_path / "mine", data, duplicate_ids="keep" if keep else "reject")
    with small_parts(part, window):
        check_same(request, tmp_path)


@QUIET
@given(data=st.data())
def test_damage_anywhere_in_an_array_gives_the_same_result_or_error(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(as_array([talk(number) for number in range(6)]))
    place = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.sampled_from([b"", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"5, ", b"\xff", b"NaN"]))
    whole[place : place + data.draw(st.integers(0, 2))] = change
    with small_parts(120, data.draw(st.sampled_from([5, 64, 4096]))):
        check_same(chat_request(tmp_path / "mine", bytes(whole), "chat.json"), tmp_path)


def test_a_dataset_of_several_files_is_read_in_pieces(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    for file in range(4):
        count = 20 if file == 2 else 3
        (root / f"part{file}.jsonl").write_bytes(as_lines([talk(number, origin=file) for number in range(count)]))
    (root / "test.json").write_bytes(as_array([talk(number) for number in range(30)]))
    (root / "packed.jsonl.gz").write_bytes(gzip.compress(as_lines([talk(number) for number in range(90)]), mtime=0))
    request = request_for("chat", root, annotations=("*",))
    with small_parts(700):
        ingested, tasks = check_same(request, tmp_path)
    assert ingested.conversations == 4 * 3 - 3 + 20 + 30 + 90
    assert ingested.official_files == {"test.json": 30}
    assert tasks > 10


@pytest.mark.parametrize("keep", ["reject", "keep"])
def test_ids_that_repeat_in_other_pieces_are_found(tmp_path: Path, keep: str) -> None:
    """Some of the same piece, of an earlier one, and names that renaming gives."""
    ids = ["a", "b", "a", "c", "b#1", "d", "b", "a#6", "a", "e", "b", "a", "#12", None, "b#10", "b"] * 2
    records = [talk(number, id=name) for number, name in enumerate(ids)]
    request = chat_request(tmp_path / "mine", as_lines(records), duplicate_ids=keep)
    for part in (1, 300, 700):
        with small_parts(part):
            ingested, _ = check_same(request, tmp_path)
    assert ingested.rejects.get("duplicate_id", 0) == (0 if keep == "keep" else len(ids) - len({*ids, 13, 29}) + 1)


def test_kept_ids_that_repeat_are_renamed_without_reading_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [talk(number, id=f'é"{number % 7}') for number in range(40)]
    request = chat_request(tmp_path / "mine", as_array(records), "chat.json", duplicate_ids="keep")
    real, read = ingest_pieces.read_into, []

    def counted(*arguments: Any, **more: Any) -> Any:
        read.append(more["parts"])
        return real(*arguments, **more)

    monkeypatch.setattr(ingest_pieces, "read_into", counted)
    with small_parts(700):
        ingested, tasks = check_same(request, tmp_path)
        assert ingested.conversations == 40
        assert len(read) == len({str(parts) for parts in read}) < tasks // 2 + 1
        read.clear()
        check_same(request, tmp_path, rules=Filter(answer_chars=Range(min=len("Answer 0 of record 10."))))
        assert len(read) > len({str(parts) for parts in read})  # the name of a dropped record is not known


def test_more_names_than_are_counted_come_out_in_their_order(tmp_path: Path) -> None:
    records = [talk(number, **{f"k{number % 7}": 1, f"k{3 * number}": 2, f"z{number}": 3}) for number in range(80)]
    with small_parts(600):
        ingested, tasks = check_same(chat_request(tmp_path / "mine", as_array(records), "chat.json"), tmp_path)
    assert len(ingested.ignored_keys) == 100
    assert tasks > 10


def test_filters_and_settings_that_no_record_has_are_the_same_in_pieces(tmp_path: Path) -> None:
    records = [talk(number, score=number % 5) for number in range(30)]
    request = chat_request(tmp_path / "mine", as_array(records), "chat.json")
    with small_parts(500):
        rules = Filter(rounds=Range(min=2))
        ingested, _ = check_same(request, tmp_path, rules=rules)
        assert ingested.filtered == {"rounds": 30}
        for changes in ({"filter_fields": ("scor",)}, {"keys": {"nobody": "messages"}}, {"keys": {"nobody": None}}):
            check_same(replace(request, **changes), tmp_path)


def test_images_inside_records_are_kept_once_in_the_order_of_the_records(tmp_path: Path) -> None:
    images = [base64.b64encode(jpeg(number)).decode() for number in (1, 2, 1, 3, 2, 4)]
    records = [talk(number, images=[image]) for number, image in enumerate(images)]
    for record in records:
        record["messages"][0]["content"] = "<image>\nWhat?"
    with small_parts(1000):
        ingested, _ = check_same(chat_request(tmp_path / "mine", as_lines(records)), tmp_path)
    assert ingested.conversations == len(images)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_are_cut_between_row_groups_and_record_batches(tmp_path: Path, kind: str) -> None:
    rows = [
        {**talk(number), "images": [{"bytes": jpeg(number), "path": None}], "other": number} for number in range(30)
    ]
    for row in rows:
        row["messages"][0]["content"] = "<image>\nWhat?"
    table = pa.Table.from_pylist(rows)
    root = tmp_path / "mine"
    root.mkdir()
    if kind == "parquet":
        pq.write_table(table, root / "a.parquet", row_group_size=4)
    else:
        with pa.OSFile(str(root / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    request = request_for("chat", root, annotations=("*",), images=("*",))
    with small_parts(5000):
        ingested, tasks = check_same(request, tmp_path)
    assert ingested.conversations == 30
    assert ingested.ignored_keys == {"other": 30}
    assert tasks > 2


Members = list[tuple[str, bytes]]


def tar_of(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> None:
    """A member whose name ends with a slash is a folder, one with the content b"link" a link."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            elif data == b"link":
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def sample(number: int, folder: str = "") -> Members:
    name = f"{folder}{number:04d}"
    record = talk(number, id=f"s{number % 20}")
    return [(f"{name}.jpg", jpeg(number)), (f"{name}.json", text_of(record))]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_cut_between_samples(tmp_path: Path, form: int) -> None:
    members: Members = [("x/", b"")]
    for number in range(25):
        members += sample(number, "x/" + "long" * 30 * (number % 4 == 0 and form != tarfile.USTAR_FORMAT))
    others = [("y/", b""), ("no-extension", b"1"), ("alone.jpg", jpeg(1)), ("link.json", b"link"), ("z.json", b"{")]
    members[9:9] = others
    tar_of(tmp_path / "mine/a.tar", [*members, ("w/", b"")], form)
    request = request_for("chat", tmp_path / "mine", annotations=("*",), images=("*",))
    with small_parts(1000):
        ingested, tasks = check_same(request, tmp_path)
    assert ingested.conversations == 20
    assert ingested.rejects["duplicate_id"] == 5
    assert tasks > 8


def test_a_tar_whose_samples_are_mixed_or_damaged_is_read_whole(tmp_path: Path) -> None:
    members = [member for number in range(12) for member in sample(number)]
    mixed = sorted(members, key=lambda member: member[0].endswith(".json"))
    for index, (order, damage) in enumerate([(mixed, 0), (members, 3000), (members, -3000), (members, 700)]):
        path = tmp_path / f"mine{index}/a.tar"
        tar_of(path, order)
        if damage:
            data = path.read_bytes()
            path.write_bytes(data[:damage] + (b"" if damage < 0 else bytes(40) + data[damage + 40 :]))
        request = request_for("chat", path.parent, annotations=("*",), images=("*",))
        with small_parts(1000):
            check_same(request, tmp_path)


def test_llava_is_read_in_pieces(tmp_path: Path) -> None:
    records = [
        {"id": str(number % 17), "image": f"{number:012}.jpg", "conversations": [
            {"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "That."}]}
        for number in range(40)
    ]  # fmt: skip
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava/detail_23k.json").write_bytes(as_array(records))
    request = request_for("llava", tmp_path)
    with small_parts(900):
        ingested, tasks = check_same(request, tmp_path, "llava")
    assert ingested.rejects == {"duplicate_id": 23}
    assert tasks > 5


def test_the_cuts_do_not_depend_on_workers_and_a_whole_build_is_the_same(tmp_path: Path) -> None:
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
        image_blend(tmp_path / name)
    build(tmp_path / "whole/blend.yaml")
    with small_parts(400):
        report = build(tmp_path / "pieces/blend.yaml")
        assert report.built_tasks > 6
        assert build(tmp_path / "pieces/blend.yaml").built_tasks == 0
    assert files_of(tmp_path / "pieces/build") == files_of(tmp_path / "whole/build")


def test_a_killed_reading_resumes_at_its_finished_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = chat_request(tmp_path / "mine", as_array([talk(number) for number in range(30)]), "chat.json")
    read: list[int] = []
    real = ingest_pieces.run_piece

    def dies(task: ingest_pieces.PieceTask) -> ingest_pieces.PieceResult:
        if task.number == 4:
            raise KeyboardInterrupt
        return real(task)

    def counted(task: ingest_pieces.PieceTask) -> ingest_pieces.PieceResult:
        read.append(task.number)
        return real(task)

    with small_parts(600):
        monkeypatch.setattr(ingest_stage, "run_piece", dies)
        with pytest.raises(KeyboardInterrupt):
            read_in_pieces(request, tmp_path)
        monkeypatch.setattr(ingest_stage, "run_piece", counted)
        monkeypatch.setattr(ingest_stage, "cut_file", None)  # the cuts are known
        ingested, _, _ = read_in_pieces(request, tmp_path)
    assert ingested.conversations == 30
    assert min(read) == 4


@pytest.mark.parametrize("files", [1, 9])
def test_an_adapter_that_reads_all_files_for_every_piece_is_called_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    """It says independent_records, but walks the annotations."""
    for _ in on_path(monkeypatch, tmp_path):
        write_module(
            tmp_path, "walker", ADAPTER.replace('licence="None."', 'licence="None.", independent_records=True')
        )
        root = tmp_path / "mine"
        root.mkdir()
        for file in range(files):
            (root / f"{file}.txt").write_text("".join(f"Line {line}.\n" for line in range(90 // files)))
        request = request_of(find_adapter("walker:ADAPTER"), root)
        with small_parts(200):
            ingested, _ = check_same(request, tmp_path, "walker:ADAPTER", extension=adapter_origin("walker:ADAPTER"))
        assert ingested.conversations == 90 // files * files


def test_a_file_that_changes_between_cutting_and_reading_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = as_array([talk(number) for number in range(30)])
    request = chat_request(tmp_path / "mine", data, "chat.json")
    real = ingest_pieces.run_piece

    def changed(task: ingest_pieces.PieceTask) -> ingest_pieces.PieceResult:
        (tmp_path / "mine/chat.json").write_bytes(data.replace(b"record 2", b"REcORD22"))
        return real(task)

    monkeypatch.setattr(ingest_stage, "run_piece", changed)
    with small_parts(600):
        ingested: Ingested = read_in_pieces(request, tmp_path)[0]
    assert "changed while it was read" in str(ingested.error)
    shutil.rmtree(tmp_path / "pieces")


@pytest.mark.parametrize("keep", ["reject", "keep"])
def test_pieces_come_back_from_nodes_that_do_not_share_the_build_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    monkeypatch.setenv("DSVL_CACHE", str(tmp_path / "node"))
    stored: list[bytes] = []

    def put(content: bytes) -> int:
        stored.append(content)
        return len(stored) - 1

    request = chat_request(
        tmp_path / "mine", as_lines([talk(number, id=f"r{number % 25}") for number in range(40)]), duplicate_ids=keep
    )
    carrier = Carrier(tmp_path / "build", tmp_path / "build/cache", put)

    def engine(function: Any, tasks: Any, *_: Any) -> Iterator[tuple[int, Any]]:
        for index, task in enumerate(tasks):
            yield index, carrier.unpack(run_carried(function, carrier.pack(task), stored.__getitem__))

    with small_parts(800):
        task = ingest_task("mine", "chat", request, tmp_path / "build/cache", None)
        (ingested,) = ingest_stage.read_datasets([task], TaskRunner(engine, 1, Silent()))
    expected, whole = read_whole(request, tmp_path)
    assert ingested == expected
    assert files_of_spool(task.folder) == files_of_spool(whole.folder)
