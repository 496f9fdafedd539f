"""What the other ranks learn of an error, by its kind; a rank is an object with a thread here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dst.errors import ConfigError
from tests.support.heartbeat_groups import LONG_S, complete
from trainer.distributed import failures, meeting
from trainer.distributed.failures import sharing_fate, telling_failures
from trainer.distributed.stop_signal import Stopped
from trainer.errors import LostRankError


@pytest.fixture
def groups() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("a bug\nof many lines"), "ValueError: a bug"),
        (ConfigError(["build: is not there"]), "build: is not there"),
        (KeyError(), "KeyError: "),
    ],
)
def test_an_error_of_one_rank_is_told_to_the_others_in_a_line(groups: ExitStack, error: Exception, cause: str) -> None:
    made = complete(groups, 3)
    with pytest.raises(type(error)) as raised, sharing_fate(made.clients[0]):
        raise error
    assert raised.value is error
    for each in (made.server, made.clients[1]):
        lost = each.lost(LONG_S)
        assert lost is not None
        assert (lost.rank, lost.cause) == (1, cause)


def test_what_a_lost_rank_causes_in_a_collective_is_reported_as_its_loss(groups: ExitStack) -> None:
    made = complete(groups, 3)
    made.clients[1].fail("memory ran out")
    with pytest.raises(LostRankError) as raised, sharing_fate(made.server):
        raise RuntimeError("Connection closed by peer")
    assert raised.value.rank == 2
    assert " was lost before its first step: memory ran out; all ranks end; " in str(raised.value)


def test_a_failed_collective_without_a_lost_rank_stays_what_it_is(
    groups: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "PATIENCE_S", 0.1)
    made = complete(groups, 2)
    with pytest.raises(RuntimeError, match="shapes differ"), sharing_fate(made.clients[0]):
        raise RuntimeError("shapes differ")
    lost = made.server.lost(LONG_S)
    assert lost is not None
    assert lost.cause == "RuntimeError: shapes differ"


def test_ranks_that_stop_as_asked_are_not_lost(groups: ExitStack) -> None:
    made = complete(groups, 2, lost_after_s=0.6)
    with pytest.raises(Stopped), sharing_fate(made.clients[0]):
        raise Stopped
    with sharing_fate(made.server):
        pass
    assert made.server.lost() is None


def test_a_run_of_one_rank_has_nobody_to_tell() -> None:
    with pytest.raises(ValueError, match="a bug"), sharing_fate(None):
        raise ValueError("a bug")


@pytest.mark.parametrize(
    ("sizes", "tells"),
    [
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, True),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, False),
        ({"WORLD_SIZE": "2"}, False),
        ({}, False),
    ],
)
def test_a_rank_that_cannot_start_tells_other_hosts_if_there_are_any(
    sizes: dict[str, str], tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[tuple[int, str]] = []
    monkeypatch.setattr(meeting, "tell_failure", lambda address, cause: reported.append((address.rank, cause)))
    environment = {"RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "1", **sizes}
    with pytest.raises(ConfigError), telling_failures(environment):
        raise ConfigError(["build: is not there"])
    assert reported == ([(1, "build: is not there")] if tells else [])
