"""A server on loopback whose answers a test chooses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from preprocess.fetch import download
from tests.support.in_process import without_processes
from tests.support.web_server import WebServer, web_server


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with without_processes(), web_server() as server:
        yield server
