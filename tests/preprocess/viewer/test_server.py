"""The socket that the viewer listens at."""

from __future__ import annotations

import asyncio
import socket

import pytest

from preprocess.errors import ConfigError
from preprocess.viewer.server import listen


def test_a_small_answer_does_not_wait_for_the_acknowledgement_of_the_one_before() -> None:
    async def accepted() -> int:
        delays: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                connection = transport.get_extra_info("socket")
                delays.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        with listen("127.0.0.1", 0) as listening:
            server = await asyncio.get_running_loop().create_server(Protocol, sock=listening)
            async with server:
                _, writer = await asyncio.open_connection(*listening.getsockname())
                is_without_delay = await delays
                writer.close()
                await writer.wait_closed()
        return is_without_delay

    assert asyncio.run(accepted())


def test_a_busy_port_is_named_with_what_to_do() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be used .*--port, 0 for any free one"):
            listen("127.0.0.1", port)
