"""The socket that a server listens at, and the names under which it answers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dst.common.web_server import host_name, is_loopback, listen, own_hosts
from dst.errors import ConfigError


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


def test_a_server_for_other_machines_is_reached_by_addresses_and_its_own_names() -> None:
    is_own = own_hosts("0.0.0.0")
    assert all(map(is_own, ("192.168.1.7", "[fe80::1]", "localhost", socket.gethostname().lower())))
    assert not any(map(is_own, ("evil.example", "", "[evil]")))
    assert own_hosts("data.internal")("data.internal")
    assert not own_hosts("127.0.0.1")("192.168.1.7")


def test_a_host_is_read_without_its_port() -> None:
    assert (host_name("[::1]"), host_name("LocalHost:1"), host_name("::1")) == ("[::1]", "localhost", ":")


def test_only_names_of_this_machine_are_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "LOCALHOST", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.7", "example.org")))
