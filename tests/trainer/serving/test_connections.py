"""Bodies that are large or late, connections on which nothing is asked or read: each is bounded, and ended."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from typing import Any

import pytest

pytest.importorskip("starlette")

from tests.support.chat_requests import chat_body, encoded, image_bytes, image_part
from tests.support.chat_servers import CHAT, chat_server, connection, head, status_of
from tests.support.tiny_models import loaded
from tests.support.waiting import wait_until
from trainer.errors import RequestError
from trainer.serving import connections
from trainer.serving.images import ImageFetcher
from trainer.serving.limits import Limits
from trainer.serving.prompts import PromptMaker


@pytest.mark.parametrize("path", [CHAT, "v1/prompt"])
def test_a_body_above_the_limit_is_refused_while_it_is_sent_and_the_client_sees_why(path: str) -> None:
    with chat_server(loaded(), limits=Limits(body_bytes=100_000)) as small:
        refused = small.post(path, b" " * 3_000_000)
        assert (refused.status, refused.error["code"]) == (413, "body_too_large")
        with connection(small) as opened:  # without a length
            opened.sendall(head(0, path).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            for _ in range(40):
                opened.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            opened.sendall(b"0\r\n\r\n")
            assert status_of(opened) == 413
        assert small.post(path, chat_body(max_tokens=1)).status == 200


def test_large_bodies_together_are_bounded_too() -> None:
    with chat_server(loaded(), limits=Limits(buffered_bytes=200_000)) as small, connection(small) as first:
        first.sendall(head(150_000) + b" " * 149_000)
        wait_until(lambda: small.post(CHAT, b" " * 120_000).status == 429)
        refused = small.post(CHAT, b" " * 120_000)
        assert (refused.status, refused.headers["retry-after"]) == (429, "2")
        first.sendall(b" " * 1000)
        assert status_of(first) == 400
        assert small.post(CHAT, b" " * 120_000).status == 400


def test_bodies_count_until_their_prompts_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    reached, may_continue = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        reached.set()
        assert may_continue.wait(60)
        raise RequestError("enough")

    monkeypatch.setattr(PromptMaker, "request", wait)
    large = encoded(chat_body()) + b" " * 120_000
    with chat_server(loaded(), limits=Limits(buffered_bytes=200_000)) as small, connection(small) as first:
        first.sendall(head(len(large)) + large)
        assert reached.wait(60)
        assert small.post("v1/prompt", large).status == 429
        may_continue.set()
        assert status_of(first) == 400
        assert small.post("v1/prompt", large).status == 200


def test_images_behind_urls_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch(*_: object) -> bytes:
        return image_bytes()

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    messages = [{"role": "user", "content": [image_part("https://example.org/a.png")] * 2}]
    body = encoded(chat_body(messages=messages))
    for more, status in ((1, 429), (2, 200)):
        limits = Limits(buffered_bytes=len(body) + more * len(image_bytes()))
        with chat_server(loaded(), limits=limits) as small:
            assert small.post("v1/prompt", body).status == status


def test_a_body_that_does_not_come_is_given_up() -> None:
    with chat_server(loaded(), limits=Limits(body_timeout_s=0.2)) as impatient, connection(impatient) as opened:
        opened.sendall(head(1000) + b"{")
        assert status_of(opened) == 408


def test_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.2)
    begun = b"GET /health HTTP/1.1\r\nHost:"
    with chat_server(loaded()) as impatient, connection(impatient) as silent, connection(impatient) as slow:
        slow.sendall(begun)
        assert (silent.recv(100), slow.recv(100)) == (b"", b"")
        assert impatient.get("health").status == 200
        with connection(impatient) as later:
            later.sendall(begun + b" localhost\r\n\r\n" + begun)
            while later.recv(65536):
                pass  # the answer; then it is closed, since the second request does not come


def test_a_request_that_takes_long_to_answer_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.1)
    plain = PromptMaker.described

    def slow(*arguments: Any) -> Any:
        time.sleep(0.4)
        return plain(*arguments)

    monkeypatch.setattr(PromptMaker, "described", slow)
    body = encoded(chat_body())
    with chat_server(loaded()) as server:
        client = http.client.HTTPConnection(server.url.split("/")[2], timeout=30)
        used = set()
        for _ in range(2):
            client.request("POST", "/v1/prompt", body, {"Content-Type": "application/json"})
            used.add(client.sock)
            assert client.getresponse().read()
        assert len(used) == 1
        client.close()


def test_a_connection_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_S", 0.2)
    monkeypatch.setattr(connections, "REQUEST_S", 0.2)
    with chat_server(loaded()) as server, connection(server) as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.settimeout(0.1)
        wanted = b"GET /page/main.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000

        def is_closed() -> bool:
            try:
                unread.sendall(wanted)
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        wait_until(is_closed)
