"""What the benchmark of training steps makes of CPU seconds, and runs that it does not compare."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

from tools.bench import loop
from tools.bench.data import ROOT
from tools.bench.training.bare_loop import LoopReport
from trainer.config.run import load_config

TOKENS, STEPS = 1000, 20
BEFORE = Path("before")


def report_of(config: Path) -> LoopReport:
    steps = load_config(config).schedule.steps
    assert steps is not None
    return LoopReport(
        tokens=[TOKENS] * steps, trained_tokens=[100] * steps, losses=[7.0 - 0.1 * i for i in range(steps)]
    )


def test_starts_do_not_count_and_the_fastest_round_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start of 5 s and 100 ms a step, 125 ms in the run of this checkout; other rounds take 3 s more."""
    rounds = iter(range(100))

    def seconds(config: Path, step: float) -> float:
        return 5 + step * len(report_of(config).losses) + 3 * (next(rounds) >= 8)

    def run_command(checkout: Path, config: Path) -> tuple[float, float]:
        losses = report_of(config).losses[-loop.LOGGED :]
        return sum(losses) / len(losses), seconds(config, 0.125 if checkout == ROOT else 0.1)

    monkeypatch.setattr(loop, "run_bare_loop", lambda _, config: (report_of(config), seconds(config, 0.1)))
    monkeypatch.setattr(loop, "run_command", run_command)
    (goal,) = loop.compared(tmp_path, BEFORE, STEPS, repeats=3)
    assert goal.got == pytest.approx(0.8)
    assert not goal.met
    assert "| `dsvl-train run`, now | 5.00 | 125.0 | 8,000 | 800 | 0.800 |" in capsys.readouterr().out


def test_a_run_whose_loss_is_not_that_of_its_bare_loop_is_not_compared() -> None:
    report = LoopReport(tokens=[5, 5], trained_tokens=[1, 3], losses=[4.0, 2.0])
    loop.check_equal(2.5, report, "now")
    with pytest.raises(SystemExit, match=r"now: the mean loss of the last 10 steps is 3\.0, and 2\.5 in the bare loop"):
        loop.check_equal(3.0, report, "now")
