"""A build behind a plain web server, whose pages list files without sizes."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import shards
from tests.support.small_blends import build, image_blend


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing to stderr."""


def test_a_build_behind_a_plain_web_server_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSVL_CACHE", str(tmp_path / "cache"))
    build(image_blend(tmp_path))
    handler = partial(Quiet, directory=str(tmp_path / "build"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        opened = shards.open(f"http://127.0.0.1:{server.server_address[1]}")
        report = shards.verify(opened)
        server.shutdown()
        thread.join()
    assert report.problems == []
    assert report.samples == 12
