"""Ranks meet through torch's store; a rank is a thread here."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from trainer.config.run import DistributedConfig
from trainer.distributed import meeting
from trainer.distributed.launcher_environment import reserved_port
from trainer.distributed.meeting import Address, Meeting, meet, tell_failure
from trainer.distributed.stop_signal import Stopped
from trainer.errors import LostRankError

PATIENT = DistributedConfig(start_timeout_s=600)


def never() -> bool:
    return False


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def address(rank: int, port: int, world_size: int = 2, *, of_agent: bool = False) -> Address:
    return Address(rank=rank, world_size=world_size, host="127.0.0.1", port=port, of_agent=of_agent)


def start(
    pool: ThreadPoolExecutor,
    *addresses: Address,
    limits: DistributedConfig = PATIENT,
    stopped: Callable[[], bool] = never,
) -> list[Future[Meeting]]:
    return [pool.submit(meet, each, limits, stopped) for each in addresses]


def test_the_environment_of_launchers_says_where_to_meet() -> None:
    own = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node-a", "MASTER_PORT": "29500"}
    assert Address.of(own) == Address(rank=1, world_size=4, host="node-a", port=29500, of_agent=False)
    assert Address.of({**own, "TORCHELASTIC_USE_AGENT_STORE": "True"}).of_agent


def test_ranks_that_met_share_a_store_and_watch_each_other(pool: ThreadPoolExecutor, port: int) -> None:
    met = [each.result() for each in start(pool, *(address(rank, port, 3) for rank in (2, 0, 1)))]
    met[0].store.set("key", "value")
    assert met[2].store.get("key") == b"value"
    met[0].heartbeats.fail("no more")
    assert [lost.rank for each in met if (lost := each.heartbeats.lost(600)) is not None] == [2, 2, 2]
    for each in met:
        each.heartbeats.leave()


def test_ranks_that_do_not_come_are_named_on_all_that_came(pool: ThreadPoolExecutor, port: int) -> None:
    limits = DistributedConfig(start_timeout_s=2)
    for came in start(pool, *(address(rank, port, 5) for rank in (0, 3)), limits=limits):
        with pytest.raises(
            LostRankError, match="3 of 5 ranks did not come within 2 s: 1, 2, 4; rank 0 waits on "
        ) as lost:
            came.result()
        assert f"(MASTER_ADDR 127.0.0.1, port {port})" in str(lost.value)


def test_a_rank_says_where_it_looked_for_rank_0_in_vain(port: int) -> None:
    with pytest.raises(LostRankError) as lost:
        meet(address(1, port), DistributedConfig(start_timeout_s=1), never)
    assert str(lost.value).startswith(
        f"rank 0 at MASTER_ADDR 127.0.0.1, port {port} cannot be reached (Connection refused), for 1 s; this is rank 1 "
        f"on {socket.gethostname()}; see what rank 0 printed"
    )


def test_a_run_that_is_asked_to_stop_ends_while_its_ranks_wait(pool: ThreadPoolExecutor, port: int) -> None:
    asked = threading.Event()
    waiting = start(pool, address(0, port, 3), address(1, port, 3), stopped=asked.is_set)
    asked.set()
    for each in waiting:
        with pytest.raises(Stopped):
            each.result()


def test_a_host_that_does_not_see_the_request_to_stop_is_told(pool: ThreadPoolExecutor, port: int) -> None:
    asked = threading.Event()
    (first,) = start(pool, address(0, port, 3), stopped=asked.is_set)
    (blind,) = start(pool, address(2, port, 3))
    threading.Timer(2.0, asked.set).start()
    for each in (first, blind):
        with pytest.raises(Stopped):
            each.result()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_start_tells_those_that_wait(pool: ThreadPoolExecutor, port: int, failing: int) -> None:
    telling = pool.submit(tell_failure, address(failing, port), "build: is not there")
    (waiting,) = start(pool, address(1 - failing, port))
    with pytest.raises(
        LostRankError, match=f"^rank {failing} on .* before its first step: build: is not there; "
    ) as lost:
        waiting.result()
    assert lost.value.rank == failing
    telling.result()


def test_telling_ends_though_nobody_waits(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "TELL_S", 1)
    tell_failure(address(1, port), "build: is not there")
    tell_failure(address(0, port), "build: is not there")


def test_what_an_earlier_meeting_left_in_an_agents_store_is_passed_over(pool: ThreadPoolExecutor, port: int) -> None:
    agent = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=True, timeout=timedelta(seconds=600), wait_for_workers=False
    )
    with reserved_port() as nobody:
        agent.set("dsvl/heartbeats", json.dumps({"port": nobody, "token": "old"}))
        (second,) = start(pool, address(1, port, of_agent=True))
        (first,) = start(pool, address(0, port, of_agent=True))
        met = [first.result(), second.result()]
    for each in met:
        each.heartbeats.leave()
