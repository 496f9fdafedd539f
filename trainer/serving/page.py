"""The chat page of `dsvl-train serve`: plain files, served as they are, under a strict content security policy.

Rules: nothing is loaded from elsewhere, and no code or style is inline. The page itself needs no key, and contains
nothing of the model or of conversations; all of that it asks of `/v1/`.

    Starlette(routes=[*page_routes(), ...])
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dst.common.html_pages import SHARED_STYLE
from dst.common.web_server import PAGE_HEADERS

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Trusted types: browsers that know them refuse every text as HTML."""
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache", **PAGE_HEADERS}
FOLDER = Path(__file__).parent / "page"
_MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


def page_routes() -> list[Route]:
    """`/`, and `/page/NAME` for each file that it loads. Raises OSError if the installation lacks them."""
    files = [path for path in sorted(FOLDER.iterdir()) if path.suffix in _MEDIA_TYPES and path.name != "index.html"]
    return [
        _route("/", FOLDER / "index.html"),
        *(_route(f"/page/{path.name}", path) for path in [SHARED_STYLE, *files]),
    ]


def _route(address: str, path: Path) -> Route:
    content, media_type = path.read_bytes(), _MEDIA_TYPES[path.suffix]

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return Route(address, endpoint, methods=["GET"])
