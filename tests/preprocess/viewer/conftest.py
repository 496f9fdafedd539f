"""The build that most tests of the web app look at, once a file; a file may define its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.viewed_builds import Ask, app_of, make_viewed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_viewed(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="module")
def ask(folder: Path) -> Ask:
    return app_of(folder)
