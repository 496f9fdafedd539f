"""Images of requests: data URIs, and URLs that lead to public addresses only, within bounds."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("starlette")

from dst.common.public_addresses import public_socket
from tests.support.chat_requests import chat_body, data_uri, image_bytes, image_part, png_header
from tests.support.chat_servers import chat_server
from tests.support.tiny_models import loaded
from tests.support.web_server import WebServer, hanging, sending, web_server
from trainer.errors import RequestError
from trainer.serving.images import ImageFetcher, decode_data_uri
from trainer.serving.limits import Limits
from trainer.serving.message_parts import ImageSource

PNG = image_bytes()
SMALL = Limits(image_url_bytes=10_000, image_url_timeout_s=0.5)


@pytest.fixture
def site() -> Iterator[WebServer]:
    with web_server() as running:
        yield running


def source(url: str) -> ImageSource:
    return ImageSource(url=url, param="messages[0].content[0].image_url.url")


def fetched(url: str, *, allow_private: bool = True, is_on: bool = True) -> bytes:
    async def run() -> bytes:
        fetcher = ImageFetcher(SMALL, is_on=is_on, allow_private=allow_private)
        try:
            return await fetcher.fetch(source(url))
        finally:
            await fetcher.close()

    return asyncio.run(run())


def test_a_data_uri_is_the_bytes_of_its_image() -> None:
    for head in ("data:image/png;base64,", "DATA:;base64,", "data:image/png;name=a;BASE64,"):
        assert decode_data_uri(source(head + base64.b64encode(PNG).decode())) == PNG


@pytest.mark.parametrize(
    "url",
    [
        *("data:", "data:,abc", "data:image/png,abc", "data:image/png;base64", "data:;base64,é", "data:;base64,QQ"),
        "data:;base64,Q Q=",
    ],
)
def test_what_is_not_base64_is_refused_with_its_field(url: str) -> None:
    with pytest.raises(RequestError, match=r"messages\[0\].content\[0\].image_url.url: is not .*; expected data:"):
        decode_data_uri(source(url))


def test_urls_are_refused_unless_they_are_switched_on(site: WebServer) -> None:
    (url,) = site.serve({"/a.png": PNG})
    with pytest.raises(RequestError, match=r"is not a data URI; .* see --image-urls"):
        fetched(url, is_on=False)
    assert site.requests == []
    assert fetched(url) == PNG


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]", "2130706433"],
)
def test_private_addresses_are_never_connected_to(host: str, site: WebServer) -> None:
    site.serve({"/a.png": PNG})
    port = site.url.rpartition(":")[2]
    with pytest.raises(RequestError, match=r"has a private address; expected a public one|cannot be fetched"):
        fetched(f"http://{host}:{port}/a.png", allow_private=False)
    assert site.requests == []


def test_a_name_is_refused_for_the_address_that_it_leads_to_when_it_is_asked(
    site: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.serve({"/a.png": PNG})
    port = int(site.url.rpartition(":")[2])
    private = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: private)
    with pytest.raises(RequestError, match="has a private address"):
        fetched(f"http://images.example.org:{port}/a.png", allow_private=False)
    assert site.requests == []


def test_a_redirect_is_followed_as_a_url_of_its_own(site: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = site.serve({"/b.png": PNG})
    site.answers["/a"] = sending(status=302, Location=target)
    assert fetched(f"{site.url}/a") == PNG
    site.answers["/file"] = sending(status=302, Location="file:///etc/passwd")
    with pytest.raises(RequestError, match="its scheme is 'file'; expected http"):
        fetched(f"{site.url}/file")
    site.answers["/loop"] = sending(status=307, Location="/loop")
    with pytest.raises(RequestError, match="more than 5 redirects"):
        fetched(f"{site.url}/loop")


def test_a_redirect_to_a_private_address_is_refused(site: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first connection, to a server that plays the public one, is let through."""
    import trainer.serving.images as module

    (target,) = site.serve({"/b.png": PNG})
    site.answers["/a"] = sending(status=302, Location=target)
    opened = list[object]()

    def first_is_public(address: object) -> socket.socket:
        opened.append(address)
        return socket.socket() if len(opened) == 1 else public_socket(address)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "public_socket", first_is_public)
    with pytest.raises(RequestError, match="has a private address"):
        fetched(f"{site.url}/a", allow_private=False)
    assert site.paths() == ["/a"]


def test_an_image_behind_a_url_is_bounded_in_bytes_and_time(site: WebServer) -> None:
    site.answers["/large"] = sending(b"a" * 10_001)
    site.answers["/unknown"] = lambda exchange: exchange.send(b"a" * 10_001, headers={"Connection": "close"})
    site.answers["/slow"] = hanging
    site.answers["/gone"] = sending(status=404)
    for path, text in (
        ("/large", "has more than 10,000 bytes"),
        ("/unknown", "has more than 10,000 bytes"),
        ("/slow", "did not arrive within 0.5 s"),
        ("/gone", "answers HTTP 404; expected an image"),
    ):
        with pytest.raises(RequestError, match=text):
            fetched(site.url + path)
    with pytest.raises(RequestError, match="cannot be fetched"):
        fetched("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "/etc/passwd", "file:///etc/passwd", "http://", "http://a:b@c/d", "", "http://a\n"]
)
def test_what_is_not_a_url_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match=r"image_url.url: (cannot be asked for|cannot be fetched)"):
        fetched(url)


def test_images_behind_urls_reach_the_model_as_data_uris_do(site: WebServer) -> None:
    (url,) = site.serve({"/a.png": PNG})
    with chat_server(loaded(), image_urls=True, allow_private_addresses=True) as served:
        bodies = [
            chat_body(messages=[{"role": "user", "content": [image_part(where)]}], temperature=0, max_tokens=8)
            for where in (url, data_uri(PNG))
        ]
        behind, inside = (served.post("v1/chat/completions", body).json()["choices"] for body in bodies)
        assert behind == inside


def test_a_damaged_or_huge_image_is_a_bad_request_that_names_it() -> None:
    bomb, text = png_header(60_000, 60_000), b"<html>"
    with chat_server(loaded()) as served:
        for data, expected in (
            (bomb, "cannot be decoded: 60000x60000 is more than"),
            (text, "no image: the file starts with"),
            (PNG[:70], "cannot be decoded"),
        ):
            messages = [{"role": "user", "content": [image_part(data_uri(data))]}]
            reply = served.post("v1/chat/completions", chat_body(messages=messages))
            assert (reply.status, reply.error["code"]) == (400, "invalid_image")
            assert re.search(expected, reply.error["message"])
