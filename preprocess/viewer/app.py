"""The web app of `dsvl-prep view`, as an ASGI application.

Rules: it only reads. Every answer has a content security policy under which no script of data runs, and the Host
header must name this server: else a page of another site could reach it under a name of its own (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dst.common.html_pages import shown
from dst.common.web_server import PAGE_HEADERS, host_name
from dst.errors import DsvlError
from preprocess.viewer.opened_build import OpenedBuilds
from preprocess.viewer.pages import POLICY, TEMPLATES, Pages
from preprocess.viewer.selection import read_sample
from shards.errors import ImageError
from shards.images.formats import format_of
from shards.images.thumbnails import thumbnail

_SIDE = 512
_HEADERS = {"content-security-policy": POLICY, **PAGE_HEADERS}
_KEPT = {"cache-control": "private, max-age=3600"}


class _PlaceConvertor(IntegerConvertor):
    """A whole number of a path. Starlette's own raises ValueError for one of more digits than Python parses."""

    regex = "[0-9]{1,18}"


register_url_convertor("place", _PlaceConvertor())


def make_app(builds: OpenedBuilds, *, is_own: Callable[[str], bool], bases: tuple[Path, ...]) -> ASGIApp:
    """is_own: whether the server may be asked under this host, which has no port. bases: see Pages."""
    pages = Pages(builds, bases)

    def page(make: Callable[[Request], str]) -> Callable[[Request], object]:
        """An endpoint that renders a page in a thread; what goes wrong is a page as well."""

        async def endpoint(request: Request) -> Response:
            try:
                return HTMLResponse(await run_in_threadpool(make, request))
            except IndexError as error:
                return HTMLResponse(pages.fault("Not here", str(error)), status_code=404)
            except DsvlError as error:
                return HTMLResponse(
                    pages.fault("This cannot be shown", "\n".join(error.lines())), status_code=_status(error)
                )
            except OSError as error:
                fault = f"a file of the build cannot be read ({error}); it may have been deleted while you look"
                return HTMLResponse(pages.fault("This cannot be shown", fault), status_code=500)

        return endpoint

    def image(request: Request) -> Response:
        number, index = request.path_params["number"], request.path_params["index"]
        with builds.reading() as opened:
            _, sample = read_sample(opened.build, number)
        if index >= len(sample.images):
            raise IndexError(f"{sample.where} has {len(sample.images)} images; there is no image {index + 1}")
        data = bytes(sample.images[index])
        if request.query_params.get("full"):
            return Response(data, media_type=_media_type(data), headers=_KEPT)
        try:
            small, _, _ = thumbnail(data, _SIDE)
        except ImageError as error:
            return Response(_fault_image(str(error)), media_type="image/svg+xml", headers=_KEPT)
        return Response(small, media_type="image/jpeg", headers=_KEPT)

    async def image_endpoint(request: Request) -> Response:
        try:
            return await run_in_threadpool(image, request)
        except (IndexError, DsvlError, OSError) as error:
            return Response(_fault_image(str(error)), media_type="image/svg+xml", headers={"cache-control": "no-store"})

    script = (TEMPLATES / "viewer.js").read_bytes()

    async def script_endpoint(request: Request) -> Response:
        return Response(script, media_type="text/javascript")

    async def missing(request: Request, error: Exception) -> Response:
        return HTMLResponse(pages.fault("Not here", f"there is no page {request.url.path}"), status_code=404)

    routes = [
        Route("/", page(lambda request: pages.gallery(request.query_params))),
        Route(
            "/number/{number:place}",
            page(lambda request: pages.sample(request.path_params["number"], request.query_params)),
        ),
        Route(
            "/sample/{key}", page(lambda request: pages.sample_of_key(request.path_params["key"], request.query_params))
        ),
        Route(
            "/tokens/{number:place}",
            page(lambda request: pages.tokens(request.path_params["number"], request.query_params)),
        ),
        Route("/record/{number:place}", page(lambda request: pages.record(request.path_params["number"]))),
        Route("/rejects", page(lambda request: pages.rejects(request.query_params))),
        Route(
            "/reject/{offset:place}",
            page(lambda request: pages.reject(request.path_params["offset"], request.query_params)),
        ),
        Route("/sequences", page(lambda request: pages.sequences(request.query_params))),
        Route("/image/{number:place}/{index:place}", image_endpoint),
        Route("/viewer.js", script_endpoint),
    ]
    return _Guard(Starlette(routes=routes, exception_handlers={404: missing}), is_own)


class _Guard:
    """Refuses other methods and hosts, and adds the headers of every answer."""

    def __init__(self, app: ASGIApp, is_own: Callable[[str], bool]) -> None:
        self._app, self._is_own = app, is_own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in _HEADERS.items())]
            await send(message)

        answer: ASGIApp = self._app
        host = host_name(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
        if not self._is_own(host):
            answer = Response("This server answers only under its own name; open the address that it printed.\n", 421)
        elif scope["method"] not in ("GET", "HEAD"):
            answer = Response("This server only reads: GET and HEAD.\n", 405, {"allow": "GET, HEAD"})
        await answer(scope, receive, send_with_headers)


def _media_type(data: bytes) -> str:
    """Of a stored image, by its bytes. Raises ImageError for what is none."""
    extension = format_of(data).extension
    return f"image/{'jpeg' if extension == 'jpg' else extension}"


def _status(error: DsvlError) -> int:
    return 400 if error.exit_code == 2 else 500


def _fault_image(fault: str) -> bytes:
    """An image that says why there is none."""
    words = shown(fault).split()
    lines: list[str] = [""]
    for word in words[:80]:
        if len(lines[-1]) + len(word) > 44:
            lines.append("")
        lines[-1] += f"{word[:44]} "
    rows = "".join(f'<text x="8" y="{24 + 18 * row}">{escape(line)}</text>' for row, line in enumerate(lines[:10]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="360" height="{24 + 18 * min(len(lines), 10)}" '
        'font-family="sans-serif" font-size="13" fill="#a40e26"><rect width="100%" height="100%" fill="#ffe9e9"/>'
        f"{rows}</svg>"
    ).encode()
