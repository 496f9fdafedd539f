"""What a run logs: sums over windows, MFU by hand, files that continue where the run does."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from trainer.training import metrics
from trainer.training.metrics import Journal, MultipliedWeights, Record, Window, peak_flops, read_journal, record
from trainer.training.progress import Terminal
from trainer.training.run_log import RunLog

WORK = MultipliedWeights(
    encoder=1000,
    encoder_trained=0,
    encoder_tokens=10,
    projector=100,
    projector_trained=100,
    decoder=5000,
    decoder_trained=50,
    head=300,
    head_trained=0,
)


def entry(step: int) -> Record:
    return record(
        Window(loss_sum=2.0, trained_tokens=1), step=step, epoch=0.5, lr={"a": 0.1}, peak=None, memory_bytes=7
    )


def logged_steps(folder: Path, *steps: int, after_step: int = 0, tensorboard: bool = False) -> list[int]:
    journal = Journal(folder, tensorboard=tensorboard, after_step=after_step)
    for step in steps:
        journal.write(entry(step))
    journal.close()
    return [line["step"] for line in read_journal(folder)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr("trainer.training.metrics.time.perf_counter", lambda: now[0])

    def set_time(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return set_time


def test_a_record_is_over_all_tokens_of_its_steps_and_leaves_pauses_out(clock: Callable[[float], None]) -> None:
    window = Window(start=100.0)
    for loss_sum, trained in ((30.0, 10), (2.0, 6)):  # a mean of means would be 1.667
        window.steps += 1
        window.loss_sum += loss_sum
        window.trained_tokens += trained
        window.positions += 100
        window.tokens += 80
        window.images += 3
        window.records += 8
        window.wait_seconds += 0.5
        window.flops += 1e9
    window.grad_norm = 1.5
    clock(2.0)
    with window.paused():
        clock(52.0)
    clock(54.0)
    actual = record(window, step=20, epoch=0.25, lr={"decoder": 1e-4}, peak=1e10, memory_bytes=9)
    assert actual.loss == 2.0
    assert (actual.tokens_per_second, actual.trained_tokens_per_second, actual.images_per_second) == (40.0, 4.0, 1.5)
    assert actual.records_per_second == 4.0
    assert (actual.data_wait_share, actual.seconds_per_step, actual.grad_norm) == (0.25, 2.0, 1.5)
    assert actual.padding_share == pytest.approx(0.2)
    assert actual.mfu == pytest.approx(0.05)
    window.grad_norm = float("nan")
    assert record(window, step=20, epoch=0.25, lr={}, peak=None, memory_bytes=9).grad_norm is None


def test_operations_are_counted_as_by_hand() -> None:
    forward = 2 * (6 * 10 * (1000 + 100) + 70 * 5000 + 20 * 300)
    backward = 2 * (6 * 10 * (0 + 100 + 100) + 70 * (5000 + 50) + 20 * 300)
    assert WORK.flops(positions=70, images=6, trained_tokens=20) == forward + backward


def test_the_first_name_in_the_table_that_a_device_has_gives_its_peak() -> None:
    assert peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA A10G", "fp16") != peak_flops("NVIDIA A100-SXM4-80GB", "fp16") == 312e12
    assert peak_flops("NVIDIA L40S", "bf16") != peak_flops("NVIDIA L4", "bf16") == 121e12
    assert peak_flops("NVIDIA H200", "fp32") is None
    assert peak_flops("", "bf16") is None
    names = list(metrics.PEAK_FLOPS)
    for number, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:number]), f"{name} would never be found"


def test_a_journal_continues_after_its_step_and_logs_no_step_twice(tmp_path: Path) -> None:
    assert logged_steps(tmp_path, 1, 2, 3, 4) == [1, 2, 3, 4]
    assert logged_steps(tmp_path, 3, 4, 5, after_step=2) == [1, 2, 3, 4, 5]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a crash cut it off
    assert logged_steps(tmp_path, 6, after_step=5) == [1, 2, 3, 4, 5, 6]
    assert logged_steps(tmp_path, 1) == [1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"step"', '"stEp"'),
        ('"kind"', '"kinD"'),
        ('"loss"', '"losS"'),
        ('"step": 2', '"step": "2"'),
        ('"loss": 2.0', '"loss": null'),
        ('{"kind": "train", "step": 2', "[" * 100_000),
    ],
)
def test_a_damaged_line_costs_a_run_that_is_resumed_its_own_step_alone(tmp_path: Path, old: str, new: str) -> None:
    logged_steps(tmp_path, 1, 2, 3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[1]
    path.write_text(lines[0] + lines[1].replace(old, new) + lines[2])
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert logged_steps(tmp_path, 4, after_step=3) == [1, 3, 4]
    stderr = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        config: Any = SimpleNamespace(logging=SimpleNamespace(tensorboard=False))
        ranks: Any = SimpleNamespace(is_first=True)
        with RunLog(config, tmp_path / "copy", ranks, WORK, step=3, steps=4):
            pass
    assert "metrics.jsonl: damaged or unfinished lines that are left out: 1" in " ".join(stderr.getvalue().split())


def test_evaluations_stand_between_the_steps(tmp_path: Path) -> None:
    journal = Journal(tmp_path, tensorboard=False, after_step=0)
    journal.write(entry(1))
    journal.write_evaluation(1, 2.5, {"a": 2.0, "b": 3.0})
    journal.close()
    assert read_journal(tmp_path)[1] == {"kind": "eval", "step": 1, "loss": 2.5, "datasets": {"a": 2.0, "b": 3.0}}
    assert json.dumps(read_journal(tmp_path)[0])


def test_lines_go_to_a_stderr_that_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    with Terminal(10, done=0) as terminal:
        terminal.step(1)
        terminal.show(entry(1))
        terminal.print("[bold]as it is[/bold]")
    lines = stderr.getvalue().splitlines()
    assert lines[0].startswith("step 1/10  loss 2.0000  lr 0.1  0 tokens/s  padding 100%  left 0:00:0")
    assert lines[1] == "[bold]as it is[/bold]"


def test_tensorboard_shows_every_number_of_a_record_and_of_an_evaluation(tmp_path: Path) -> None:
    journal = Journal(tmp_path, tensorboard=True, after_step=0)
    journal.write(entry(4))
    journal.write_evaluation(4, 2.5, {"a": 2.0})
    journal.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    scalars = {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert scalars["eval/loss"] == [(4, 2.5)]
    assert scalars["eval/a"] == [(4, 2.0)]
    assert scalars["train/loss"] == [(4, 2.0)]
    numbers = {field.name for field in dataclasses.fields(Record)} - {"step", "lr", "mfu"}  # MFU is not known here
    assert {f"train/{name}" for name in numbers} < scalars.keys()
    assert [tag for tag in scalars if tag.startswith("train/lr/")]
