"""Files that are sent by signed URLs: whole, with their digest; where it fails fsspec sends them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

import shards
from shards.storage import signed_requests
from shards.storage.signed_requests import SignedRequests
from tests.support.remote_builds import all_samples, publish
from tests.support.signed_server import CONTENT, SignedServer, sent, signed_server, signing

pytestmark = pytest.mark.usefixtures("cache_home")


@pytest.fixture
def server() -> Iterator[SignedServer]:
    with signed_server() as listening:
        yield listening


def test_a_file_is_sent_with_its_digest_on_a_connection_that_is_kept(server: SignedServer, tmp_path: Path) -> None:
    requests = SignedRequests(signing(server), "root")
    for length in (0, 1, 3 << 20):
        file, sha256 = sent(tmp_path, bytes(length))
        assert requests.put("a.tar", file, sha256)
        assert server.body == bytes(length)
        assert base64.b64decode(server.asked[2]["x-amz-checksum-sha256"]).hex() == sha256
        assert server.asked[2]["Content-Type"] == "application/x-tar"
    assert server.connections == 1


def test_a_file_is_sent_whole_again_where_a_connection_was_closed(server: SignedServer, tmp_path: Path) -> None:
    server.closes = True
    requests = SignedRequests(signing(server), "root")
    file, sha256 = sent(tmp_path, CONTENT)
    for _ in range(3):
        server.body = b""
        assert requests.put("a.tar", file, sha256)
        assert server.body == CONTENT
    assert server.connections == 3


@pytest.mark.parametrize("status", [307, 400, 403, 501, 503])
def test_after_some_refusals_nothing_is_sent_any_more(server: SignedServer, tmp_path: Path, status: int) -> None:
    server.status = status
    requests = SignedRequests(signing(server), "root")
    for _ in range(10):
        assert not requests.put("a.tar", *sent(tmp_path, CONTENT))
    assert server.connections == signed_requests.FAILURES


def test_a_file_too_large_for_one_request_is_left_to_fsspec(
    server: SignedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signed_requests, "LARGEST_PUT", len(CONTENT))
    requests = SignedRequests(signing(server), "root")
    for _ in range(signed_requests.FAILURES):
        assert not requests.put("a.tar", *sent(tmp_path, CONTENT + b"."))
    assert server.connections == 0
    assert requests.put("a.tar", *sent(tmp_path, CONTENT)), "it was no failure"


def test_a_build_is_sent_by_signed_urls(folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket}/{folder.parent.name}"
    monkeypatch.setattr("s3fs.S3FileSystem._put_file", None)
    publish(folder, url)
    assert all_samples(shards.open(url)) == all_samples(shards.open(folder))


def test_a_build_is_sent_where_signed_urls_are_refused(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/{folder.parent.name}"
    monkeypatch.setattr("s3fs.S3FileSystem.sign", lambda self, path, expiration, **_: "http://127.0.0.1:1/nothing")
    publish(folder, url)
    assert all_samples(shards.open(url)) == all_samples(shards.open(folder))
