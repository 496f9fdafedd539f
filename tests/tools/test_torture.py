"""A small part of the torture, as `python -m tools.torture` runs all of it; and that it finds what is lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tools.torture import damage
from tools.torture.__main__ import main
from tools.torture.mutations import mutations
from tools.torture.outcomes import Outcomes, loss_of
from tools.torture.small_build import SmallBuild

pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallBuild:
    return SmallBuild(tmp_path_factory.mktemp("small") / "build", records=24)


def test_flips_and_forgeries_are_found(small: SmallBuild) -> None:
    for outcomes in (damage.flips(small, 60, random.Random(1)), damage.forgeries(small, 80, random.Random(1))):
        assert outcomes.losses == []
        assert outcomes.tried == outcomes.survived >= 60


def test_a_damaged_cache_gives_the_same_bytes_or_a_clear_error(small: SmallBuild) -> None:
    for kind in (damage.cache_flips, damage.cache_mix_ups):
        assert kind(small, 8, random.Random(2)).losses == []


def test_mutated_inputs_are_rejects_or_errors_of_one_line(tmp_path: Path) -> None:
    results = mutations(tmp_path, 480, random.Random(3))
    assert [loss for outcomes in results for loss in outcomes.losses] == []
    assert sum(outcomes.tried for outcomes in results) == 480


def test_kills_and_full_disks_lose_nothing_and_the_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"kills": 2, "disks": 1, "flips": 1, "cache-flips": 0, "cache-mix-ups": 0, "forgeries": 0, "mutations": 0}
    code = main([f"--{name}={count}" for name, count in counts.items()])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seed 1"
    assert [line.split() for line in lines[2:]] == [
        ["kills", "2", "2", "0"],
        ["full", "disks", "1", "1", "0"],
        ["flips", "1", "1", "0"],
    ]
    assert code == 0


def test_what_is_lost_is_counted(small: SmallBuild, monkeypatch: pytest.MonkeyPatch) -> None:
    unnoticed = damage.flips_in(small.whole, list, 3, random.Random(4))
    assert (unnoticed.tried, unnoticed.survived) == (3, 0)
    assert small.difference(small.folder) is not None
    outcomes = Outcomes("kind")
    outcomes.count("name", loss_of(lambda: [][1]))
    assert outcomes.losses == ["kind, name: IndexError: list index out of range"]
