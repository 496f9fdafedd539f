"""dsvl-prep fetch: every URL gets its file or a reason, whatever its server does, and a stopped fetch resumes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from preprocess.cli import cli
from preprocess.errors import ConfigError, DataError
from preprocess.fetch.ledger import open_ledger
from preprocess.fetch.run import fetch_blend
from preprocess.images.fetched import LEDGER, STATES
from tests.support.fetching import FAST, blend_of, fetch, file_of, missing
from tests.support.paths import ROOT
from tests.support.small_blends import build, chat_blend, chat_record, files_of, jpeg, rejects_of
from tests.support.waiting import wait_until
from tests.support.web_server import WebServer, closed, hanging, in_turn, sending


def test_a_build_finds_images_by_url_and_never_asks_for_one(tmp_path: Path, site: WebServer) -> None:
    urls = site.serve({"/a.jpg": jpeg(1), "/b?id=7": jpeg(2)})
    blend = blend_of(tmp_path, [*urls, f"{site.url}/dead.jpg"], limits={"max_reject_share": 1})
    report = build(blend)
    assert [line["reason"] for line in rejects_of(tmp_path / "build")] == ["image_missing"] * 3
    assert all("run dsvl-prep fetch" in line["detail"] for line in rejects_of(tmp_path / "build"))
    assert site.requests == []
    assert fetch(blend).states == {"fetched": 2, "gone": 1}
    asked = len(site.requests)
    report = build(blend)
    assert report.datasets["mine"].samples == 2
    (line,) = rejects_of(tmp_path / "build")
    assert line["detail"] == f"{site.url}/dead.jpg: dsvl-prep fetch found: gone: HTTP 404"
    assert len(site.requests) == asked


def test_a_part_of_a_message_may_name_a_url(tmp_path: Path, site: WebServer) -> None:
    (url,) = site.serve({"/a.jpg": jpeg(1)})
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "That."}]
    blend = chat_blend(tmp_path, [{"messages": messages}])
    assert fetch(blend).states == {"fetched": 1}
    assert build(blend).datasets["mine"].images == 1


def test_a_second_fetch_asks_for_nothing_that_is_settled(tmp_path: Path, site: WebServer) -> None:
    urls = site.serve({"/a.jpg": jpeg(1)})
    blend = blend_of(tmp_path, [*urls, *urls, f"{site.url}/dead.jpg"])
    first = fetch(blend)
    assert site.paths() == ["/a.jpg", "/dead.jpg"] or site.paths() == ["/dead.jpg", "/a.jpg"]
    second = fetch(blend)
    assert len(site.requests) == 2
    assert (first.new, second.new) == (1, 0)
    assert first.states == second.states
    site.serve({"/dead.jpg": jpeg(2)})
    assert fetch(blend, again=True).states == {"fetched": 2}


def test_a_lost_or_damaged_file_is_downloaded_again(tmp_path: Path, site: WebServer) -> None:
    (url,) = site.serve({"/a.jpg": jpeg(1)})
    blend = blend_of(tmp_path, [url])
    path = file_of(fetch(blend), url)
    flipped = bytearray(jpeg(1))
    flipped[-10] ^= 1
    path.write_bytes(flipped)
    build(blend, settings=["limits.max_reject_share=1"])
    (line,) = rejects_of(tmp_path / "build")
    assert line["reason"] == "image_unreadable"
    assert "fetch --verify" in line["detail"]
    assert fetch(blend).new == 0  # of the same size, so only its digest tells
    assert fetch(blend, verify=True).new == 1
    path.unlink()
    assert fetch(blend).new == 1
    assert path.read_bytes() == jpeg(1)


def test_copies_at_several_urls_are_on_one_side_of_the_split(tmp_path: Path, site: WebServer) -> None:
    urls = site.serve({"/a.jpg": jpeg(1), "/b": jpeg(1)})
    records = [chat_record(number, images=[url]) for number, url in enumerate(urls)]
    blend = chat_blend(tmp_path, [records[0] | {"split": "val"}, records[1], chat_record(2)])
    fetch(blend)
    assert build(blend).datasets["mine"].splits == {"train": 1, "eval": 2}


def test_redirects_are_followed_a_few_times(tmp_path: Path, site: WebServer) -> None:
    site.answers |= {f"/{n}": sending(status=301 + n % 2, Location=f"/{n + 1}") for n in range(5)}
    site.serve({"/5": jpeg(1), "/my%20photo.jpg": jpeg(2)})
    site.answers["/space"] = sending(status=302, Location="my photo.jpg")
    report = fetch(blend_of(tmp_path, [f"{site.url}/0", f"{site.url}/space", f"{site.url}/my photo.jpg"]))
    assert report.states == {"fetched": 3}


def test_a_signed_url_is_sent_unchanged(tmp_path: Path, site: WebServer) -> None:
    path = "/a%2Fb%41.jpg?X-Amz-Credential=k%2F2026&sig=a+b%3D"
    assert fetch(blend_of(tmp_path, site.serve({path: jpeg(1)}))).states == {"fetched": 1}


def test_private_addresses_are_refused_unless_allowed(tmp_path: Path, site: WebServer) -> None:
    port = site.url.rpartition(":")[2]
    urls = [f"http://{host}:{port}/a.jpg" for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "[::1]")]
    site.serve({"/a.jpg": jpeg(1)})
    blend = blend_of(tmp_path, urls)
    states = fetch(blend, allow_private=False).states
    assert states["private_address"] >= 3
    assert states["private_address"] + states.get("bad_url", 0) == 5  # how aiohttp calls the odd forms of 127.0.0.1
    assert site.requests == []
    assert fetch(blend).states["fetched"] >= 2


def test_what_is_not_a_usable_url_is_settled_without_a_request(tmp_path: Path, site: WebServer) -> None:
    urls = ["https://", "http://user:secret@example.org/a.jpg", "http://example.org:port/a.jpg", "http://a\tb/c.jpg"]
    assert fetch(blend_of(tmp_path, urls)).states == {"bad_url": 4}


def test_no_host_gets_more_requests_at_once_than_allowed(tmp_path: Path, site: WebServer) -> None:
    urls = site.serve({f"/{number}": jpeg(number) for number in range(30)})
    assert fetch(blend_of(tmp_path, urls), "fetch.per_host=3").states == {"fetched": 30}
    assert site.most_at_once <= 3


def test_a_host_that_never_answers_is_left_after_a_few_urls(tmp_path: Path, site: WebServer) -> None:
    site.answers = {f"/{number}": closed for number in range(40)}
    report = fetch(blend_of(tmp_path, [site.url + path for path in site.answers]), "fetch.tries=1", "fetch.per_host=2")
    assert report.unreachable == 40
    assert len(site.requests) < 24
    assert any("did not answer for" in detail for _, detail in missing(report).values())


def recorded(folder: Path) -> int:
    """How many URLs the ledger on disk knows more of than that they wait."""
    if not (folder / LEDGER).exists():
        return 0
    with contextlib.closing(sqlite3.connect(folder / LEDGER)) as rows:
        try:
            (found,) = rows.execute("SELECT count(*) FROM images WHERE validator <> '' OR sha256 <> x''").fetchone()
        except sqlite3.OperationalError:  # no table yet, or the fetch is writing
            return 0
    return int(found)


@pytest.mark.parametrize(
    ("change", "after_build"),
    [
        ("state = 'fetchud'", {"image_missing"}),
        ("state = 'waiting', url = 'http://127.0.0.1:1/other.jpg', host = 'other'", {"image_missing"}),
        ("sha256 = 'text'", {"image_unreadable"}),
        ("sha256 = x'00'", {"image_unreadable"}),
        ("extension = 'pjg'", {"image_missing"}),
        ("size = 'x'", set()),
    ],
)
def test_a_damaged_row_is_a_reject_and_the_next_fetch_repairs_it(
    tmp_path: Path, site: WebServer, change: str, after_build: set[str]
) -> None:
    blend = blend_of(tmp_path, site.serve({f"/{number}.jpg": jpeg(number) for number in range(2)}))
    report = fetch(blend)
    build(blend, settings=("limits.max_reject_share=1",))
    whole = files_of(tmp_path / "build")
    with contextlib.closing(sqlite3.connect(report.folder / "fetched.sqlite")) as rows:
        rows.execute(f"UPDATE images SET {change} WHERE key = (SELECT min(key) FROM images)")
        rows.commit()
    build(blend, out=tmp_path / "again", settings=("limits.max_reject_share=1",))
    assert {reject["reason"] for reject in rejects_of(tmp_path / "again")} == after_build
    assert fetch(blend, verify=True).states == {"fetched": 2}
    build(blend, out=tmp_path / "repaired", settings=("limits.max_reject_share=1",))
    assert files_of(tmp_path / "repaired") == whole


@pytest.mark.parametrize("change", ["detail = CAST(x'f7f7' AS TEXT)", "extension = '../../x'"])
def test_a_ledger_that_cannot_be_read_is_an_error_of_one_line(tmp_path: Path, site: WebServer, change: str) -> None:
    blend = blend_of(tmp_path, site.serve({"/0.jpg": jpeg(0)}))
    with contextlib.closing(sqlite3.connect(fetch(blend).folder / "fetched.sqlite")) as rows:
        rows.execute(f"UPDATE images SET {change}")
        rows.commit()
    with pytest.raises(DataError, match=r"fetched\.sqlite: cannot be read \(.*\); move the folder away and run"):
        build(blend)


def test_a_killed_fetch_resumes_with_what_it_had(tmp_path: Path, site: WebServer) -> None:
    done = site.serve({f"/{number}": jpeg(number) for number in range(5)})
    site.answers["/last"] = in_turn(hanging, lambda exchange: exchange.send_range(jpeg(1), '"1"'))
    blend = blend_of(tmp_path, [*done, f"{site.url}/last"])
    command = [sys.executable, "-m", "preprocess.cli", "fetch", "--allow-private", "--blend", str(blend)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        wait_until(lambda: recorded(tmp_path / "fetched") == 6)
        process.send_signal(signal.SIGKILL)
    assert fetch(blend).states == {"fetched": 6}
    assert site.requests[6:] == [("/last", "bytes=100-")]


def test_a_fetch_that_runs_keeps_builds_and_other_fetches_out(tmp_path: Path, site: WebServer) -> None:
    blend = blend_of(tmp_path, site.serve({"/a.jpg": jpeg(1)}))
    fetch(blend)
    with open_ledger(tmp_path / "fetched"):
        with pytest.raises(DataError, match="is using it"):
            fetch(blend)
        with pytest.raises(DataError, match="fetch is running"):
            build(blend)
    (tmp_path / "fetched/fetched.sqlite-journal").write_bytes(b"what a kill in the middle of a commit leaves")
    with pytest.raises(DataError, match="run it again"):
        build(blend)
    fetch(blend)
    assert build(blend).datasets["mine"].samples == 1


def test_a_host_name_that_dns_does_not_know_is_tried_once(
    tmp_path: Path, site: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unknown(host: str, *more: object, **options: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert fetch(blend_of(tmp_path, ["http://gone.invalid/a.jpg"])).unreachable == 1
    assert asked == ["gone.invalid"]


def test_the_command_prints_counts_and_fails_while_hosts_are_unreachable(tmp_path: Path, site: WebServer) -> None:
    urls = site.serve({"/a.jpg": jpeg(1)})
    site.answers["/b"] = in_turn(*[closed] * 4, sending(jpeg(2)))
    blend = blend_of(tmp_path, [*urls, f"{site.url}/b", f"{site.url}/dead"])
    arguments = ["fetch", "--blend", str(blend), "--allow-private", *(f"--set={setting}" for setting in FAST)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert "1 URLs are unreachable; the same command tries them again" in done.stderr
    assert "3 URLs, 1 downloaded now" in done.stdout
    assert f"gone 1: {STATES['gone']}" in done.stdout
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert (report["urls"], report["states"], report["new"]) == (3, {"fetched": 2, "gone": 1}, 1)
    assert Path(report["missing"]).is_file()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, site: WebServer) -> None:
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched/thesis.tex").touch()
    with pytest.raises(DataError, match="holds other files"):
        fetch(blend_of(tmp_path, [f"{site.url}/a.jpg"]))


def test_without_its_package_the_command_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"dsvl\[remote\]"):
        fetch_blend(tmp_path / "blend.yaml")


def test_every_state_is_on_the_page() -> None:
    page = (ROOT / "docs/fetch.md").read_text(encoding="utf-8")
    assert all(f"| `{state}` | {meaning} |" in page for state, meaning in STATES.items())
