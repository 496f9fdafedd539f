"""The chat page in front of a server whose answers a test decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.fake_chat_server import FakeChat


@pytest.fixture(scope="session")
def chat_server() -> Iterator[FakeChat]:
    pytest.importorskip("uvicorn")
    from tests.support.fake_chat_server import fake_chat

    with fake_chat() as chat:
        yield chat


@pytest.fixture
def chat(chat_server: FakeChat) -> FakeChat:
    """As it was started: no requests, no answers, no key."""
    chat_server.reset()
    return chat_server
