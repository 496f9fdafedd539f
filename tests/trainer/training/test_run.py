"""A run as a whole: one at a time in a folder, stopped by signals, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dst.errors import ConfigError
from tests.support import train_runs
from tests.support.train_runs import config_file, folders, journal, losses, start, train
from trainer.checkpoint.discovery import find_together
from trainer.config.run import load_config
from trainer.distributed.deepspeed_engine import check_device
from trainer.distributed.launcher_environment import check_devices, reserved_port
from trainer.distributed.ranks import Ranks

STEPS = 9


def evaluations(out: Path) -> dict[int, float]:
    """Step -> held-out loss, each logged once."""
    actual = [(entry["step"], entry["loss"]) for entry in journal(out) if entry["kind"] == "eval"]
    assert len(dict(actual)) == len(actual)
    return dict(actual)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.compiled(tmp_path_factory.mktemp("run"))


@pytest.mark.slow
def test_a_run_that_begins_where_another_ended_evaluates_and_keeps_the_best_in_its_own_folder(
    build: Path, whole: Path, tmp_path: Path
) -> None:
    config = config_file(tmp_path, build, schedule={"steps": STEPS + 1}, evaluation={"every": STEPS})
    done = train(config, f"checkpoints.resume={whole}", "learning_rates.projector=2e-3", "batch.global_batch_size=8")
    out = tmp_path / "out"
    assert list(evaluations(out)) == [STEPS, STEPS + 1]
    assert json.loads((out / "checkpoints/best").read_text())["checkpoint"] in folders(out)
    assert (
        f"resuming after step {STEPS} of {STEPS + 1}; changed since then: learning_rates.projector 0.001 to 0.002, "
        f"batch.global_batch_size 4 to 8, schedule.steps {STEPS} to {STEPS + 1}" in done.output
    )


@pytest.fixture(scope="module")
def whole(build: Path) -> Path:
    """The `out` of a run that nothing stopped, evaluated after every step."""
    config = config_file(build.parent / "whole", build, schedule={"steps": STEPS}, evaluation={"every": 1})
    train(config)
    return config.parent / "out"


@pytest.mark.slow
def test_a_folder_takes_one_run_at_a_time_and_is_free_when_that_ends(build: Path, tmp_path: Path) -> None:
    endless = config_file(tmp_path, build, schedule={"steps": 100_000}, batch={"workers": 1})
    run = start(endless, ranks=2)
    run.wait_for_step(tmp_path / "out", 4)
    entries = journal(tmp_path / "out")
    done = train(endless, ranks=2, code=2)
    assert done.output.count("error: ") == 1
    assert f"error: out: process {run.processes[0].pid} on {os.uname().nodename} is training in " in done.output
    assert "wait for it, stop it, or choose another `out`" in done.output
    assert journal(tmp_path / "out")[: len(entries)] == entries
    run.kill(signal.SIGKILL)
    run.wait()
    after = int(folders(tmp_path / "out")[-1].removeprefix("step-"))
    train(endless, f"schedule.steps={after + 1}")


@pytest.mark.slow
def test_a_signal_to_all_processes_saves_and_ends_the_run_with_exit_code_0(
    whole: Path, build: Path, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"checkpoints": {"every": 0}, "evaluation": {"every": 1}, "batch": {"workers": 1}}
    config = config_file(tmp_path, build, schedule={"steps": STEPS}, **more)
    run = start(config, ranks=2, hold_after=2)
    run.wait_for_step(tmp_path / "out", 2)
    run.kill(signal.SIGTERM, workers=True)
    run.release()
    done = run.wait()
    assert done.codes == [0, 0], done.output
    step = int(folders(tmp_path / "out")[-1].removeprefix("step-"))
    assert f"stopped after step {step}; the same command resumes from there" in done.output
    assert len(losses(tmp_path / "out")) == step < STEPS
    train(config, ranks=2)
    assert losses(tmp_path / "out") == pytest.approx(losses(whole), rel=1e-6)
    assert list(evaluations(tmp_path / "out")) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_an_evaluation_that_was_due_when_the_run_stopped_comes_first_when_it_resumes(
    whole: Path, build: Path, tmp_path: Path
) -> None:
    config = config_file(tmp_path, build, schedule={"steps": STEPS}, evaluation={"every": 3})
    out = tmp_path / "out"
    train(config, "evaluation.every=0", "checkpoints.every=3")
    shutil.rmtree(out / "checkpoints/step-00000009")
    assert evaluations(out) == {}
    train(config, "checkpoints.every=0")
    expected = {step: loss for step, loss in evaluations(whole).items() if step in (6, 9)}
    assert evaluations(out) == pytest.approx(expected, rel=1e-6)
    assert losses(out) == pytest.approx(losses(whole), rel=1e-6)
    train(config)  # all is done, and logged
    assert list(evaluations(out)) == [6, 9]


@pytest.mark.slow
def test_a_finished_run_says_so_and_more_steps_resume_it(build: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, build, schedule={"steps": 2, "kind": "constant"})
    train(config)
    done = train(config)
    assert "all 2 steps are done; raise schedule.steps or schedule.epochs to train further" in done.output
    train(config, "schedule.steps=3")
    assert len(losses(tmp_path / "out")) == 3


@pytest.mark.slow
def test_what_the_device_cannot_do_is_reported_at_once(build: Path, tmp_path: Path) -> None:
    decoder = {"preset": "tiny_llama", "attn_implementation": "flex_attention"}
    encoder = {"kind": "tiny", "config": {"image_size": train_runs.SIDE, "patch_size": 16}}
    model = {"encoder": encoder, "decoder": decoder, "attention": "causal"}
    done = train(config_file(tmp_path, build, model=model), code=2)
    assert (
        "error: model.decoder.attn_implementation: flex_attention has no backward pass on a CPU; expected sdpa\n"
        in done.output
    )


def test_a_precision_that_the_device_lacks_is_reported(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False)  # recent CPUs support it
    config = load_config(config_file(tmp_path, build, precision="fp16"))
    assert check_device(config) == ["precision: cpu cannot train in fp16; expected bf16 or fp32"]


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_more_ranks_than_devices_are_reported(name: str) -> None:
    assert check_devices({}, 1) == check_devices({name: "2"}, 2) == []
    assert check_devices({name: "4"}, 2) == [
        "--num-gpus: 4 ranks were started on a host with 2 devices; expected at most 2"
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOfTwo(Ranks):
    """The first of two ranks; what the other says is given."""

    other: object

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (("step-00000006", []), "out: ranks see different checkpoints in .*: none, step-00000006; expected one folder"),
        ((None, ["a checkpoint that only it can see does not fit"]), "only it can see"),
    ],
)
def test_ranks_that_do_not_see_the_same_checkpoint_do_not_start(other: object, problem: str, tmp_path: Path) -> None:
    ranks = OneOfTwo(rank=0, world_size=2, device=torch.device("cpu"), other=other)
    with pytest.raises(ConfigError, match=problem):
        find_together(tmp_path, "auto", {}, "hash", ranks)


def test_a_reserved_port_is_the_ranks_own() -> None:
    with reserved_port() as port:
        if sys.platform == "linux":
            with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
                other.bind(("127.0.0.1", port))
        first = TCPStore("127.0.0.1", port, world_size=2, is_master=True, wait_for_workers=False)
        TCPStore("127.0.0.1", port, world_size=2, wait_for_workers=False).set("met", "here")
        assert first.get("met") == b"here"
