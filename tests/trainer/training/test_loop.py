"""Optimizer steps: the same training for any layout of ranks, micro-batches and ZeRO stages; and how a run ends."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import shards
from shards.loader import Loader
from tests.support import train_runs
from tests.support.oracles_training import plain_losses
from tests.support.train_runs import config_file, journal, losses, train
from trainer.compat.deepspeed import optimizer_step
from trainer.config.run import ScheduleConfig
from trainer.distributed.ranks import Ranks
from trainer.distributed.stop_signal import Stopped
from trainer.training.loop import evaluate, learning_rate_factor


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.compiled(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def plain(build: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step, by the plain loop."""
    folder = build.parent / "plain"
    train_runs.in_process(plain_losses, str(config_file(folder, build)), str(folder / "plain.json"))
    return [(loss, norm) for loss, norm in json.loads((folder / "plain.json").read_text())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "micro_batch_size", "stage"),
    [(1, 1, 0), (1, 4, 2), (1, 2, 3), (2, 1, 0), (2, 1, 1), (2, 2, 2), (2, 1, 3)],
)
def test_every_layout_trains_like_one_big_batch_in_plain_torch(
    build: Path, tmp_path: Path, plain: list[tuple[float, float]], ranks: int, micro_batch_size: int, stage: int
) -> None:
    config = config_file(tmp_path, build, batch={"micro_batch_size": micro_batch_size}, zero={"stage": stage})
    train(config, ranks=ranks)
    assert losses(tmp_path / "out") == pytest.approx([loss for loss, _ in plain], rel=2e-6)
    norms = [entry["grad_norm"] for entry in journal(tmp_path / "out")]
    assert norms == pytest.approx([norm for _, norm in plain], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "kind"),
    [
        ({"stage": 1, "offload_optimizer": True}, "adamw"),
        ({"stage": 3, "offload_optimizer": True, "offload_parameters": True}, "adamw"),
        ({"stage": 2}, "fused"),
    ],
)
def test_offloading_and_fused_steps_train_and_resume_alike(
    build: Path, tmp_path: Path, plain: list[tuple[float, float]], zero: dict[str, Any], kind: str
) -> None:
    config = config_file(tmp_path, build, zero=zero, optimizer={"kind": kind}, checkpoints={"every": 4})
    expected = pytest.approx([loss for loss, _ in plain], rel=2e-6)
    train(config)
    assert losses(tmp_path / "out") == expected
    shutil.rmtree(tmp_path / "out/checkpoints/step-00000008")
    assert "resuming after step 4" in train(config).output
    assert losses(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_half_precision_learns_at_every_stage_that_takes_it(build: Path, tmp_path: Path, stage: int) -> None:
    train(config_file(tmp_path, build, precision="bf16", zero={"stage": stage}))
    step_losses = losses(tmp_path / "out")
    assert step_losses[-1] < step_losses[0] - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_sequences_without_images_next_to_sequences_with_many_hang_no_rank(
    build: Path, tmp_path: Path, stage: int
) -> None:
    batch = {"packed": False, "global_batch_size": 2}
    train(
        config_file(
            tmp_path,
            build,
            batch=batch,
            zero={"stage": stage},
            schedule={"steps": 12},
            learning_rates={"encoder": 1e-4},
            checkpoints={"every": 0},
        ),
        ranks=2,
    )
    per_step = [entry["images_per_second"] for entry in journal(tmp_path / "out")]
    assert len(per_step) == 12
    assert min(per_step) == 0 < max(per_step)


@pytest.mark.slow
def test_gradient_checkpointing_and_adapters_with_dropout_change_no_loss_with_the_ranks(
    build: Path, tmp_path: Path
) -> None:
    settings = {
        "learning_rates": {"embeddings": None, "decoder": None},
        "lora": {"decoder": {"dropout": 0.2}, "encoder": {}},
        "zero": {"stage": 3},
        "schedule": {"steps": 4},
    }
    train(config_file(tmp_path / "one", build, **settings))
    train(config_file(tmp_path / "two", build, gradient_checkpointing=True, **settings), ranks=2)
    assert losses(tmp_path / "two/out") == pytest.approx(losses(tmp_path / "one/out"), rel=2e-6)


@pytest.mark.slow
def test_evaluation_gives_the_same_losses_on_any_number_of_ranks(build: Path, tmp_path: Path) -> None:
    settings = {"zero": {"stage": 3}, "schedule": {"steps": 4}, "evaluation": {"every": 2, "micro_batch_size": 3}}
    for ranks in (1, 2):
        train(config_file(tmp_path / str(ranks), build, **settings), ranks=ranks)
    first, second = (
        [entry for entry in journal(tmp_path / name / "out") if entry["kind"] == "eval"] for name in ("1", "2")
    )
    assert [entry["step"] for entry in first] == [2, 4]
    for mine, other in zip(first, second, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert mine["datasets"] == pytest.approx(other["datasets"], rel=1e-6)
        assert set(mine["datasets"]) == {"seen", "text"}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_nan_or_infinite_loss_ends_the_run_with_the_samples(build: Path, tmp_path: Path, ranks: int) -> None:
    config = config_file(tmp_path, build, learning_rates={"decoder": 1e30}, checkpoints={"every": 1})
    done = train(config, ranks=ranks, code=1)
    assert "error: step 2: the loss is " in done.output or "error: step 1: the gradient is " in done.output
    assert "it came from the samples " in done.output
    assert "seen-0000" in done.output or "text-0000" in done.output
    assert done.output.count("error:") == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_ends_the_run_on_all_ranks_naming_shard_and_key(
    build: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(build, tmp_path / "build")
    for shard in sorted((tmp_path / "build/shards/text").glob("train-*.tar")):
        data = bytearray(shard.read_bytes())
        data[700] ^= 1  # in the first sample
        shard.write_bytes(data)
    config = config_file(
        tmp_path, tmp_path / "build", batch={"global_batch_size": 2, "workers": workers}, schedule={"steps": 30}
    )
    done = train(config, ranks=2, code=1)
    errors = [line for line in done.output.splitlines() if line.startswith("error:")]
    assert 1 <= len(errors) <= 2  # each rank may have met another damaged sample
    for line in errors:
        assert "shards/text/train-" in line
        assert "sample text-0000" in line


class Overflowing:
    """As much of DeepSpeed's engine as a step uses, at fp16's smallest scale."""

    def zero_optimization_stage(self) -> int:
        return 2

    def step(self) -> None:
        raise Exception("Current loss scale already at minimum - cannot decrease scale anymore. Exiting run.")


def test_overflow_at_the_smallest_scale_of_fp16_is_distinguished_from_bugs() -> None:
    overflowing: Any = Overflowing()
    with pytest.raises(OverflowError, match="already at minimum"):
        optimizer_step(overflowing)
    broken: Any = object()
    with pytest.raises(AttributeError):
        optimizer_step(broken)


class Knowing(torch.nn.Module):
    """A model without any loss."""

    seen = 0

    def forward(self, *, segment_ids: torch.Tensor, **others: object) -> SimpleNamespace:
        self.seen += 1
        num_samples = int(segment_ids.amax(1).sum())
        return SimpleNamespace(per_sample=torch.zeros(num_samples), per_sample_tokens=torch.ones(num_samples))


def test_an_evaluation_stops_between_batches_when_a_rank_is_asked_to(build: Path) -> None:
    ranks = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    opened = shards.open(build)
    batches = list(Loader(opened, split="eval", batch_size=2, max_length=train_runs.LENGTH))
    assert len(batches) > 2
    asked = iter([False, False, True])
    model = Knowing()
    with pytest.raises(Stopped):
        evaluate(model, batches, opened.datasets, ranks=ranks, stop=lambda: next(asked))
    assert model.seen == 2
    assert evaluate(model, batches, opened.datasets, ranks=ranks).loss == 0


def test_the_learning_rate_rises_from_nothing_and_falls_to_the_final_share() -> None:
    cosine = ScheduleConfig(steps=100, warmup_ratio=0.1, min_lr_ratio=0.2)
    factors = [learning_rate_factor(cosine, step, 100) for step in range(1, 101)]
    assert factors[0] == 0.1
    assert factors[9] == 1.0
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert 0.2 < factors[-1] < 0.201
    linear = [learning_rate_factor(ScheduleConfig(kind="linear", warmup_ratio=0), step, 4) for step in range(1, 5)]
    assert linear == pytest.approx([0.8, 0.6, 0.4, 0.2])
    constant = [
        learning_rate_factor(ScheduleConfig(kind="constant", warmup_ratio=0.5), step, 4) for step in range(1, 5)
    ]
    assert constant == [0.5, 1.0, 1.0, 1.0]
    assert all(math.isfinite(learning_rate_factor(ScheduleConfig(warmup_ratio=1), step, 3)) for step in (1, 2, 3))
