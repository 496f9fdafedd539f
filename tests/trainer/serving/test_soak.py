"""A small part of the soak of tools/bench/serve_soak.py, with every kind of request."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette")

from tests.support.serve_processes import tiny_export
from tools.bench.serve_soak import run
from tools.bench.serving.mixed_requests import KINDS, exchange


@pytest.mark.slow
def test_mixed_good_and_bad_requests_are_answered_as_their_kind_says_and_leave_nothing_open(tmp_path: Path) -> None:
    soak = run(tiny_export(tmp_path), requests=160, clients=8, cache_gb=0.01, marks=2)
    assert soak.unexpected == []
    assert soak.exit_code == 0
    assert soak.memory[-1][2] <= soak.memory[0][2] + 2, "connections stay open"
    assert len(soak.statuses) >= len({exchange(number).kind for number in range(160)})


def test_the_requests_of_the_soak_are_of_every_kind_and_always_the_same() -> None:
    kinds = {exchange(number).kind.partition(" after")[0].partition(" amid")[0] for number in range(400)}
    assert len(kinds) >= len(set(KINDS))
    assert exchange(7) == exchange(7)
