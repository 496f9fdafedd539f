"""A loss that explodes is reported once; noise, outliers and ordinary curves are not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.support import train_runs
from trainer.training.loss_watch import LossWatch


def warnings_of(losses: list[float]) -> dict[int, str]:
    """Step -> warning."""
    watch = LossWatch()
    lines = {step: watch.warning(step, loss) for step, loss in enumerate(losses, 1)}
    return {step: line for step, line in lines.items() if line is not None}


def falling(steps: int, *, noise: float, seed: int, start: float = 10.0, end: float = 1.2) -> list[float]:
    """A loss that falls and is multiplied with lognormal noise."""
    random = np.random.default_rng(seed)
    return [
        (end + (start - end) * math.exp(-step / 50)) * math.exp(noise * random.standard_normal())
        for step in range(steps)
    ]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("start", [10.0, 1.2])
def test_noise_is_not_an_explosion(noise: float, start: float) -> None:
    for seed in range(5):
        assert not warnings_of(falling(4000, noise=noise, seed=seed, start=start))


def test_outliers_and_losses_near_zero_are_not_explosions() -> None:
    losses = falling(400, noise=0.1, seed=0)
    for step in range(100, 115):  # 15 steps in a row, such as one bad shard
        losses[step] = 50.0
    assert not warnings_of(losses)
    assert not warnings_of([0.01 if step < 200 else 0.4 for step in range(400)])


@pytest.mark.parametrize("before", [6, 40, 1000])
@pytest.mark.parametrize("steps_to_rise", [1, 100])
def test_an_explosion_is_reported_once_with_what_to_do(before: int, steps_to_rise: int) -> None:
    losses = falling(before, noise=0.2, seed=1, start=1.2)
    random = np.random.default_rng(2)
    for step in range(400):
        share = min(1.0, (step + 1) / steps_to_rise)
        losses.append(1.2 + share * 7 + 0.2 * float(random.standard_normal()))
    (step, line), *more = warnings_of(losses).items()
    assert not more
    assert before + 16 <= step <= before + 16 + steps_to_rise
    assert line.startswith(f"step {step}: the loss is ")
    assert f"set checkpoints.resume to a checkpoint before step {step - 15}, and lower learning_rates" in line


def test_a_second_explosion_after_a_recovery_is_reported_too() -> None:
    losses = [1.0] * 50 + [9.0] * 50 + [1.0] * 50 + [9.0] * 50
    assert list(warnings_of(losses)) == [66, 166]


def test_the_reference_of_a_resumed_run_is_what_it_logged_before() -> None:
    watch = LossWatch((step, 1.0) for step in range(1, 41))
    lines = [watch.warning(step, 9.0) for step in range(41, 61)]
    assert [step for step, line in enumerate(lines, 41) if line] == [56]


@pytest.mark.slow
def test_a_run_whose_learning_rate_is_far_too_high_says_so_and_another_does_not(tmp_path: Path) -> None:
    build = train_runs.compiled(tmp_path / "data")
    config = train_runs.config_file(tmp_path, build, schedule={"steps": 36, "kind": "constant", "warmup_ratio": 0.5})
    calm = train_runs.train(config, "checkpoints.every=0")
    assert "has probably diverged" not in calm.output
    rates = [f"learning_rates.{part}=30.0" for part in ("projector", "embeddings", "decoder")]
    wild = train_runs.train(config, f"out={tmp_path / 'wild'}", "checkpoints.every=0", *rates)
    assert wild.output.count("Training has probably diverged") == 1
