"""Datasets on a web server, with and without range requests, and one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import shards.storage.retries
from preprocess.errors import ConfigError, DataError
from tests.support.image_archives import KINDS
from tests.support.remote_inputs import blend_of, build_of
from tests.support.small_blends import build, chat_record, jpeg, write_chat
from tests.support.web_server import WebServer, in_turn, ranged, sending, web_server

pytestmark = pytest.mark.usefixtures("builds_in_this_process")

NAMES = [f"photos/{number} é#1.jpg" for number in range(4)]
QUOTED = [f"photos/{number}%20%C3%A9%231.jpg" for number in range(4)]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(shards.storage.retries, "FIRST_WAIT_S", 0.0)
    with web_server() as server:
        yield server


def serve(site: WebServer, folder: Path, kind: str) -> dict[str, object]:
    """The dataset in a folder and on the server; what a blend says about it on both."""
    write_chat(folder, [chat_record(number, images=[name]) for number, name in enumerate(NAMES)])
    KINDS[kind](folder / kind, {name: jpeg(number) for number, name in enumerate(NAMES)})
    for path in folder.rglob("*"):
        if path.is_file():
            site.answers[f"/data/{path.relative_to(folder).as_posix()}"] = ranged(path.read_bytes())
    for name, quoted in zip(NAMES, QUOTED, strict=True):
        if kind == "folder":
            site.answers[f"/data/folder/{quoted}"] = site.answers.pop(f"/data/folder/{name}")
    return {"annotations": "chat.jsonl", "images": kind}


@pytest.mark.parametrize("kind", ["folder", "stored.zip", "plain.tar", "hf.parquet", "base64.json"])
def test_a_build_from_a_web_server_has_the_bytes_of_a_local_one(site: WebServer, tmp_path: Path, kind: str) -> None:
    settings = serve(site, tmp_path / "mine", kind)
    _, expected = build_of(tmp_path, str(tmp_path / "mine"), "local", **settings)
    _, got = build_of(tmp_path, f"{site.url}/data", "remote", **settings)
    assert got == expected


def test_a_name_with_a_query_is_a_file(site: WebServer, tmp_path: Path) -> None:
    settings = serve(site, tmp_path / "mine", "stored.zip")
    _, expected = build_of(tmp_path, str(tmp_path / "mine"), "local", **settings)
    for name in ("chat.jsonl", "stored.zip"):
        site.answers[f"/data/{name}?download=true"] = site.answers.pop(f"/data/{name}")
    places = {key: f"{name}?download=true" for key, name in settings.items()}
    _, got = build_of(tmp_path, f"{site.url}/data", "remote", **places)
    shards_of = [{name for name in files if name.startswith("shards")} for files in (expected, got)]
    assert [len(names) for names in shards_of] == [2, 2]


def test_a_server_without_ranges_is_refused_with_what_to_do(site: WebServer, tmp_path: Path) -> None:
    settings = serve(site, tmp_path / "mine", "stored.zip")
    site.answers["/data/stored.zip"] = sending((tmp_path / "mine/stored.zip").read_bytes() + bytes(1 << 18))
    with pytest.raises(DataError, match=r"/data/stored\.zip: .*ignores range requests and sends whole files; use a se"):
        build_of(tmp_path, f"{site.url}/data", "remote", **settings)
    assert site.paths().count("/data/stored.zip") < 8  # it is not tried again


def test_patterns_are_refused_where_no_list_of_files_is(site: WebServer, tmp_path: Path) -> None:
    serve(site, tmp_path / "mine", "folder")
    with pytest.raises(ConfigError, match=r"matches \*\.jsonl; .*a web server has no list of its files"):
        build(blend_of(tmp_path, f"{site.url}/data", annotations="*.jsonl", images="folder"))


@pytest.mark.parametrize(("status", "expected"), [(403, "access refused"), (503, "gave up after 5 tries")])
def test_an_answer_that_is_not_the_file_is_not_taken_for_a_missing_one(
    site: WebServer, tmp_path: Path, status: int, expected: str
) -> None:
    settings = serve(site, tmp_path / "mine", "folder")
    site.answers["/data/chat.jsonl"] = sending(status=status)
    with pytest.raises(ConfigError, match=rf"/data/chat\.jsonl: {expected}"):
        build_of(tmp_path, f"{site.url}/data", "remote", **settings)


def test_a_server_that_fails_at_first_changes_no_byte(site: WebServer, tmp_path: Path) -> None:
    settings = serve(site, tmp_path / "mine", "folder")
    _, expected = build_of(tmp_path, str(tmp_path / "mine"), "local", **settings)
    for path, behaviour in site.answers.items():
        site.answers[path] = in_turn(sending(status=503), sending(status=503), behaviour)
    _, got = build_of(tmp_path, f"{site.url}/data", "remote", **settings)
    assert got == expected


def test_a_missing_image_on_a_web_server_is_a_reject(site: WebServer, tmp_path: Path) -> None:
    settings = serve(site, tmp_path / "mine", "folder")
    del site.answers[f"/data/folder/{QUOTED[1]}"]
    limits = {"settings": {"limits": {"max_reject_share": 0.5}}}
    report, _ = build_of(tmp_path, f"{site.url}/data", "remote", **settings, **limits)
    assert report.datasets["mine"].rejects == {"image_missing": 1}
