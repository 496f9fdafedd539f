"""A download that fails has its reason, is tried again if that may help, and never leaves a damaged image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.images.fetched import STATES
from tests.support.fetching import blend_of, fetch, file_of, missing
from tests.support.small_blends import jpeg
from tests.support.web_server import Behaviour, Exchange, WebServer, closed, cut, in_turn, sending


def slow(exchange: Exchange) -> None:
    exchange.send(jpeg(1)[:100], length=len(jpeg(1)))
    exchange.handler.wfile.flush()
    exchange.handler.rfile.read(1)  # until the client gives up


def endless(exchange: Exchange) -> None:
    exchange.handler.send_response(200)
    exchange.handler.send_header("Transfer-Encoding", "chunked")
    exchange.handler.end_headers()
    for _ in range(100):
        exchange.handler.wfile.write(b"10000\r\n" + jpeg(1) + bytes(0x10000 - len(jpeg(1))) + b"\r\n")


@pytest.mark.parametrize(
    ("answer", "state", "detail"),
    [
        (sending(status=410), "gone", "HTTP 410"),
        (sending(status=403), "refused", "HTTP 403"),
        (sending(status=204), "refused", "HTTP 204"),
        (sending(status=302), "refused", "HTTP 302"),
        (sending(jpeg(1), Content_Encoding="gzip"), "refused", "gzip"),
        (sending(status=503), "unreachable", "HTTP 503"),
        (sending(status=429, Retry_After="3600"), "unreachable", "HTTP 429"),
        (sending(status=302, Location="ftp://example.org/a.jpg"), "bad_redirect", "ftp"),
        (sending(status=302, Location="/x"), "bad_redirect", "more than 5"),
        (sending(b"<!DOCTYPE html><title>Not here</title>", Content_Type="text/html"), "not_image", "text/html"),
        (sending(b""), "not_image", "empty"),
        (sending(jpeg(1), X_Robots_Tag="noindex, NoAI"), "opted_out", "NoAI"),
        (sending(bytes(1_000_001)), "too_large", "1,000,001 bytes"),
        (endless, "too_large", "1,000,000"),
        (closed, "unreachable", "ServerDisconnectedError"),
        (cut, "unreachable", "ClientPayloadError"),
        (slow, "unreachable", "Timeout"),
    ],
)
def test_a_failed_download_has_its_reason_and_leaves_no_image(
    answer: Any, state: str, detail: str, tmp_path: Path, site: WebServer
) -> None:
    site.answers["/x"] = answer
    report = fetch(blend_of(tmp_path, [f"{site.url}/x"]), "fetch.max_megabytes=1")
    found = missing(report)["/x"]
    assert found[0] == state
    assert detail in found[1]
    assert report.states == {state: 1}
    left = [path.suffix for path in report.folder.rglob("*") if path.is_file() and path.parent != report.folder]
    assert left == ([".partial"] if answer in (cut, slow) else [])


OK = b"HTTP/1.1 200 OK\r\n"
NONSENSE = [
    b"",
    b"\xff\xfe\0garbage\r\n\r\n",
    b"HTTP/9.9 999 \xff\xff\r\n\r\n",
    b"HTTP/1.1 404 \xff\xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 403 \xff\xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://\xff\xff/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nRetry-After: \xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 9-5/2\r\nContent-Length: 0\r\n\r\n",
    OK + b"Content-Length: -5\r\n\r\nabc",
    OK + b"Content-Length: 5, 6\r\n\r\nabcdef",
    OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    OK + b'ETag: "\xff"\r\nContent-Type: \xff\xfe\r\nX-Robots-Tag: \xff\r\nContent-Length: 2\r\n\r\nab',
]


@pytest.mark.parametrize("answer", NONSENSE, ids=range(len(NONSENSE)))
def test_whatever_comes_a_url_has_a_state(answer: bytes, tmp_path: Path, site: WebServer) -> None:
    def send(exchange: Exchange) -> None:
        exchange.handler.wfile.write(answer)
        exchange.handler.close_connection = True

    site.answers["/x"] = send
    (found,) = missing(fetch(blend_of(tmp_path, [f"{site.url}/x"]))).values()
    assert found[0] in {*STATES} - {"waiting", "fetched"}


@pytest.mark.parametrize("first", [sending(status=500), closed, cut, sending(status=429, Retry_After="0")])
def test_a_failure_that_may_pass_is_tried_again(first: Any, tmp_path: Path, site: WebServer) -> None:
    site.answers["/x"] = in_turn(first, sending(jpeg(1)))
    report = fetch(blend_of(tmp_path, [f"{site.url}/x"]))
    assert report.states == {"fetched": 1}
    assert file_of(report, f"{site.url}/x").read_bytes() == jpeg(1)


def test_the_next_run_tries_again_what_was_unreachable(tmp_path: Path, site: WebServer) -> None:
    site.answers["/x"] = in_turn(*[closed] * 4, sending(jpeg(1)))  # aiohttp itself asks twice in each try
    blend = blend_of(tmp_path, [f"{site.url}/x"])
    assert fetch(blend).unreachable == 1
    assert fetch(blend).states == {"fetched": 1}


def after_range(etag: str, place: str) -> Behaviour:
    """A server that sends a part of another file, or another part; then all of the file."""
    part = sending(jpeg(9)[100:], 206, ETag=etag, Content_Range=place)
    return in_turn(sending(), part, sending(jpeg(1)))


@pytest.mark.parametrize(
    "then",
    [
        lambda exchange: exchange.send_range(jpeg(1), '"1"'),
        lambda exchange: exchange.send_range(jpeg(1), '"2"'),  # the file changed: all of it comes
        sending(jpeg(1)),  # a server without ranges
        in_turn(sending(status=416), sending(status=416), sending(jpeg(1))),
        after_range('"2"', "bytes 100-999/1000"),
        after_range('"1"', "bytes 50-999/1000"),
    ],
)  # fmt: skip
def test_a_partial_file_is_continued_or_begun_again_and_never_joined_with_another(
    then: Any, tmp_path: Path, site: WebServer
) -> None:
    site.answers["/x"] = in_turn(cut, then)
    report = fetch(blend_of(tmp_path, [f"{site.url}/x"]), "fetch.tries=3")
    assert report.states == {"fetched": 1}
    assert file_of(report, f"{site.url}/x").read_bytes() == jpeg(1)
    assert site.requests[1] == ("/x", "bytes=100-")


def test_an_answer_without_a_validator_is_not_continued(tmp_path: Path, site: WebServer) -> None:
    half = jpeg(1)[:100]
    site.answers["/x"] = in_turn(
        lambda exchange: exchange.send(half, length=200, headers={"ETag": 'W/"1"'}), sending(jpeg(1))
    )
    assert fetch(blend_of(tmp_path, [f"{site.url}/x"])).states == {"fetched": 1}
    assert site.requests == [("/x", ""), ("/x", "")]
