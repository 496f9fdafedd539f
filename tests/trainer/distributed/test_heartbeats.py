"""Ranks that watch each other, over real connections; a rank is an object with a thread here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.heartbeat_groups import LONG_S, TOKEN, complete, group
from tests.support.waiting import wait_until
from trainer.distributed import heartbeats
from trainer.distributed.heartbeat_client import HeartbeatClient
from trainer.distributed.heartbeat_lines import MAX_LINE_BYTES, LineConnection
from trainer.distributed.heartbeats import LostRank
from trainer.distributed.launcher_environment import speaks_for_host


@pytest.fixture
def groups() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_all_ranks_know_that_all_are_there_and_until_then_rank_0_knows_who_is_missing(groups: ExitStack) -> None:
    made = group(groups, 3)
    first = made.join(2)
    wait_until(lambda: made.server.missing() == [1])
    assert not first.wait_complete(0.3)
    made.join(1)
    assert all(each.wait_complete(LONG_S) for each in made.all)
    assert made.server.missing() == []


def test_a_rank_whose_process_ends_is_named_to_all_at_once(groups: ExitStack) -> None:
    made = complete(groups, 4)
    made.server.step = 17
    made.sockets[1].shutdown(socket.SHUT_RDWR)  # as the kernel does it for a process that ends
    lost = [each.lost(LONG_S) for each in (made.server, made.clients[0], made.clients[2])]
    assert lost[0] is not None
    assert lost == [lost[0]] * 3
    assert str(lost[0]) == (
        f"rank 2 on {socket.gethostname()} was lost in step 17: its process ended; what that rank printed last, or its "
        "host's log, says why; all ranks end; the same command resumes from the newest checkpoint, if there is one"
    )


def test_a_rank_that_falls_silent_is_lost_though_its_connection_stays(groups: ExitStack) -> None:
    made = group(groups, 3, lost_after_s=1.0)
    made.join(1)
    silent = LineConnection(made.connect())
    silent.send({"token": TOKEN, "rank": 2, "host": "far", "step": 3})
    lost = made.clients[0].lost(LONG_S)
    assert lost is not None
    assert (lost.rank, lost.host, lost.step) == (2, "far", 3)
    assert "gave no sign of life for 1 s; its host or the network failed" in lost.cause
    assert made.server.lost() == lost


def test_ranks_that_hear_nothing_of_rank_0_are_cut_off_from_it(groups: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        ended: list[LostRank] = []
        connected = socket.create_connection(deaf.getsockname())
        client = HeartbeatClient(connected, "first-host", TOKEN, rank=1, lost_after_s=0.6, end=ended.append)
        client.start()
        lost = client.lost(LONG_S)
        client.leave()
    assert lost is not None
    assert (lost.rank, lost.host) == (0, "first-host")
    assert "gave no sign of life" in lost.cause


def test_a_rank_that_fails_tells_all_why(groups: ExitStack) -> None:
    made = complete(groups, 3)
    made.clients[0].step = 5
    made.clients[0].fail("ValueError: " + "x" * 9000)
    for each in made.all:
        lost = each.lost(LONG_S)
        assert lost is not None
        assert (lost.rank, lost.step) == (1, 5)
        assert lost.cause == ("ValueError: " + "x" * 9000)[: heartbeats.MAX_CAUSE]


def test_rank_0_that_fails_tells_all_why_also_if_it_leaves_at_once(groups: ExitStack) -> None:
    made = complete(groups, 2)
    made.server.fail("memory ran out")
    made.server.leave()
    lost = made.clients[0].lost(LONG_S)
    assert lost is not None
    assert (lost.rank, lost.cause) == (0, "memory ran out")


def test_a_rank_may_come_only_to_say_why_it_cannot_start(groups: ExitStack) -> None:
    made = group(groups, 2)
    made.join(1, failed="build: is not there").leave()
    lost = made.server.lost(LONG_S)
    assert lost is not None
    assert (lost.rank, lost.cause) == (1, "build: is not there")
    assert not made.server.wait_complete(0.0)
    assert "before its first step" in str(lost)


def test_ranks_that_end_in_any_order_are_not_lost(groups: ExitStack) -> None:
    made = complete(groups, 3, lost_after_s=0.6)
    made.clients[1].leave()
    made.sockets[1].close()
    made.server.leave()
    assert made.server.lost() is None
    assert made.clients[0].lost(2.0) is None  # longer than silence is borne: rank 0 said that it ends
    made.clients[0].leave()


@pytest.mark.parametrize(
    "sent",
    [
        b'{"token": "of another run", "rank": 1, "host": "a"}\n',
        b'{"token": "of this run", "rank": 2, "host": "a"}\n',
        b'{"token": "of this run", "rank": 0, "host": "a"}\n',
        b'{"token": "of this run", "rank": true, "host": "a"}\n',
        b'{"failed": "no token"}\n',
        b"[1]\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"a" * (MAX_LINE_BYTES + 1),
        b"",
    ],
)
def test_connections_that_are_not_of_this_run_end_and_change_nothing(groups: ExitStack, sent: bytes) -> None:
    made = group(groups, 2)
    with made.connect() as foreign:
        foreign.sendall(sent)
        foreign.shutdown(socket.SHUT_WR)
        foreign.settimeout(LONG_S)
        assert foreign.recv(1) == b""
    assert made.server.lost() is None
    assert made.server.missing() == [1]
    made.join(1)
    assert made.server.wait_complete(LONG_S)


def test_a_rank_that_does_not_end_by_itself_is_ended(groups: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "GRACE_S", 0.2)
    made = complete(groups, 3)
    made.clients[1].leave()
    made.clients[0].fail("it failed")
    wait_until(lambda: len(made.ended) == 2)  # rank 0 and rank 1: the one that left ends by itself
    assert {lost.rank for lost in made.ended} == {1}


@pytest.mark.parametrize(
    ("rank", "local_rank", "lost", "speaks"),
    [(0, 0, -1, True), (1, 1, -1, False), (4, 0, 1, True), (5, 1, 1, False), (4, 0, 4, False), (5, 1, 4, True)],
)
def test_one_rank_of_each_host_speaks_and_never_the_lost_one(
    rank: int, local_rank: int, lost: int, speaks: bool
) -> None:
    assert speaks_for_host({"RANK": str(rank), "LOCAL_RANK": str(local_rank)}, lost) == speaks
