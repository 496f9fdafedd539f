"""Files by signed URLs: the bytes are those that fsspec gives and writes, and where it fails fsspec is asked."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import fsspec
import pytest

import shards
from shards.storage import signed_requests
from shards.storage.remote import RemoteStore
from shards.storage.signed_requests import SignedRequests, signing_options, takes_signed
from tests.support.remote_builds import all_samples, publish
from tests.support.signed_server import CONTENT, SignedServer, sent, signed_server, signing

pytestmark = pytest.mark.usefixtures("cache_home")


@pytest.fixture
def server() -> Iterator[SignedServer]:
    with signed_server() as listening:
        yield listening


def test_ranges_are_those_of_the_file_on_connections_that_are_kept(server: SignedServer) -> None:
    files = signing(server)
    requests = SignedRequests(files, "root")
    for start in range(0, 1000, 100):
        assert requests.ranges([("a", start, start + 50)]) == [CONTENT[start : start + 50]]
    cuts = [("a" if start % 200 else "b", start, start + 100) for start in range(0, 5000, 100)]
    assert requests.ranges(cuts) == [CONTENT[start:end] for _, start, end in cuts]
    assert server.connections <= signed_requests.AT_ONCE
    assert files.signed == ["root/a", "root/b"], "once for each file"


def test_a_connection_that_the_server_closed_is_opened_again(server: SignedServer) -> None:
    server.closes = True
    requests = SignedRequests(signing(server), "root")
    for start in range(5):
        assert requests.ranges([("a", start, start + 50)]) == [CONTENT[start : start + 50]]
    assert server.connections == 5


@pytest.mark.parametrize("status", [200, 302, 403, 503])
def test_after_some_refusals_nothing_is_asked_any_more(server: SignedServer, status: int) -> None:
    server.status = status
    requests = SignedRequests(signing(server), "root")
    for _ in range(10):
        assert requests.ranges([("a", 0, 50)]) is None
    assert server.connections == signed_requests.FAILURES


def test_giving_up_is_logged_once_without_a_signature(
    server: SignedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.status = 403
    requests = SignedRequests(signing(server), "bucket/build")
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            requests.put("a.tar", *sent(tmp_path, CONTENT))
            requests.ranges([("a", 0, 50)])
    (line,) = caplog.messages
    assert line.startswith("bucket/build: signed URLs do not work (status 403")
    assert "signature" not in line


def test_one_failure_does_not_end_it(server: SignedServer) -> None:
    requests = SignedRequests(signing(server), "root")
    for _ in range(3):
        assert requests.ranges([("a", len(CONTENT) - 10, len(CONTENT) + 10)]) is None, "it ends before"
        assert requests.ranges([("a", 0, 10)]) == [CONTENT[:10]]


def test_urls_are_signed_again_before_they_end(server: SignedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    files, now = signing(server), [0.0]
    monkeypatch.setattr(signed_requests, "monotonic", lambda: now[0])
    requests = SignedRequests(files, "root")
    for seconds in (0, signed_requests.RENEWED_S - 1, signed_requests.RENEWED_S):
        now[0] = seconds
        requests.ranges([("a", 0, 10)])
    assert len(files.signed) == 2
    assert signed_requests.RENEWED_S < signed_requests.SIGNED_S / 2


def test_a_proxy_is_left_to_fsspec(server: SignedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    assert SignedRequests(signing(server), "root").ranges([("a", 0, 10)]) is None
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert SignedRequests(signing(server), "root").ranges([("a", 0, 10)]) == [CONTENT[:10]]


def test_a_build_on_s3_is_read_by_signed_urls_as_fsspec_reads_it(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/{folder.parent.name}"
    publish(folder, url)
    monkeypatch.setattr("shards.storage.remote._cat", None)  # nothing can be asked of fsspec
    assert all_samples(shards.open(url)) == all_samples(shards.open(folder))


def test_a_build_is_read_where_signed_urls_lead_nowhere(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/{folder.parent.name}"
    publish(folder, url)
    asked: list[str] = []

    def unreachable(path: str, **_: object) -> str:
        asked.append(path)
        return "http://127.0.0.1:1/nothing"

    opened = shards.open(url)
    assert isinstance(opened.store, RemoteStore)
    files, _ = opened.store._connected()
    monkeypatch.setattr(files, "sign", unreachable)
    assert all_samples(opened) == all_samples(shards.open(folder))
    assert len(asked) == signed_requests.FAILURES


def test_a_file_that_is_not_there_is_reported_as_ever(folder: Path, bucket: str) -> None:
    url = f"{bucket}/{folder.parent.name}"
    publish(folder, url)
    opened = shards.open(url)
    files, root = fsspec.core.url_to_fs(url)
    for path in files.find(root):
        if path.endswith(".tar"):
            files.rm_file(path)
    with pytest.raises(shards.ShardError, match="is not there, but the manifest names it"):
        opened["train"][0]


def test_urls_are_signed_as_all_regions_expect(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = partial(fsspec.core.url_to_fs, f"{bucket}/a", skip_instance_cache=True)
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in connect(**signing_options(bucket))[0].sign("bucket/a")
    assert signing_options("memory://bucket/a") == signing_options("s3://name--usw2-az1--x-s3/a") == {}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"max_pool_connections": 3}})
    assert signing_options(bucket)["config_kwargs"] == {"signature_version": "s3v4", "max_pool_connections": 3}


@pytest.mark.parametrize("path", ["shards/a/train-0.tar", "my data/a+b=c/größe&more~.tar"])
@pytest.mark.parametrize("pays", [False, True])
def test_what_is_asked_is_what_was_signed(server: SignedServer, tmp_path: Path, path: str, pays: bool) -> None:
    files = fsspec.filesystem(
        "s3",
        key="nobody",
        secret="nothing",
        endpoint_url=f"http://127.0.0.1:{server.server_port}",
        requester_pays=pays,
        skip_instance_cache=True,
        **signing_options("s3://bucket/a"),
    )
    requests = SignedRequests(files, "bucket")
    payer = ["x-amz-request-payer"] if pays else []
    assert requests.ranges([(path, 3, 9)]) == [CONTENT[3:9]]
    assert signed_headers(server, path) == ["host", *payer]
    assert requests.put(path, *sent(tmp_path, CONTENT))
    assert signed_headers(server, path) == ["content-type", "host", "x-amz-checksum-sha256", *payer]


def signed_headers(server: SignedServer, path: str) -> list[str]:
    """What the last request signs. The oracle is the signature as AWS describes it, version 4, in the query."""
    method, asked, headers = server.asked
    location, _, query = asked.partition("?")
    assert unquote(location) == f"/bucket/{path}"
    fields = dict(parse_qsl(query))
    signature = fields.pop("X-Amz-Signature")
    signed = fields["X-Amz-SignedHeaders"].split(";")
    canonical = "\n".join(
        [
            method,
            quote(unquote(location), safe="/~"),
            "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(fields.items())),
            *(f"{name}:{headers[name]}" for name in signed),
            "",
            ";".join(signed),
            "UNSIGNED-PAYLOAD",
        ]
    )
    _, *scope = fields["X-Amz-Credential"].split("/")
    text = "\n".join(
        ["AWS4-HMAC-SHA256", fields["X-Amz-Date"], "/".join(scope), hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = b"AWS4nothing"
    for part in (*scope, text):
        key = hmac.digest(key, part.encode(), "sha256")
    assert key.hex() == signature
    unsigned = {name.lower() for name in headers if name.lower().startswith("x-amz-")} - set(signed)
    assert not unsigned, "S3 refuses headers of its own that are not signed"
    return signed


@pytest.mark.parametrize(
    "options",
    [
        {"client_kwargs": {"verify": False}},
        {"s3_additional_kwargs": {"A": "B"}},
        {"config_kwargs": {"proxies": {"https": "http://127.0.0.1:9"}}},
    ],
)
def test_requests_that_need_more_than_a_signature_are_left_to_fsspec(options: dict[str, Any]) -> None:
    assert takes_signed(fsspec.filesystem("s3", skip_instance_cache=True))
    assert not takes_signed(fsspec.filesystem("s3", skip_instance_cache=True, **options))
    assert not takes_signed(fsspec.filesystem("memory"))
