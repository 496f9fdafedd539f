"""`dsvl-train` in real processes: launchers, signals, and how a process ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.support import trainer_processes
from tests.support.train_runs import config_file, journal, losses
from tests.support.trainer_processes import COMMAND, environment, run
from tests.support.waiting import LIMIT_S, wait_until

SAME = {"kind": "constant", "warmup_ratio": 0.0}
"""With this schedule, the first steps of runs of any length are the same."""

PROGRAM = """
import atexit, os, sys, threading
class Kept:
    def __del__(self, write=os.write):
        write(1, b"torn down\\n")
kept = Kept()
atexit.register(print, "exit handler")
from trainer import cli
{before}
cli.program()
"""


build = pytest.fixture(scope="module")(trainer_processes.make_build)


class End(NamedTuple):
    """How a process of PROGRAM ended, which prints whether its interpreter was torn down."""

    code: int
    printed: list[str]
    """The last lines of stdout"""
    stderr: str


def end_of(*arguments: str | Path, before: str = "") -> End:
    done = run("-c", PROGRAM.format(before=before), *arguments, command=[sys.executable])
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]  # torch 2.9 prints there
    return End(done.returncode, lines[-3:], done.stderr)


@pytest.fixture(scope="module")
def run_alone(build: Path) -> tuple[Path, End]:
    """The configuration of a run of one process, without any launcher, and how it ended."""
    schedule = {"steps": 4, **SAME}
    config = config_file(build.parent / "alone", build, schedule=schedule, logging={"tensorboard": True})
    thread = "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()"
    return config, end_of("run", "--config", config, before=thread)


@pytest.fixture(scope="module")
def alone(run_alone: tuple[Path, End]) -> Path:
    """The folder of that run."""
    config, end = run_alone
    assert end.code == 0, end.stderr
    assert "step 4/4  loss " in end.stderr
    return config.parent / "out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run of two ranks that a signal to the launching process ended."""

    out: Path
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def launched(build: Path) -> Launched:
    """It has made at least four steps."""
    folder = build.parent / "launched"
    schedule = {"steps": 100_000, **SAME}
    config = config_file(folder, build, schedule=schedule, checkpoints={"every": 0}, zero={"stage": 3})
    out, logs = folder / "out", [folder / "stdout", folder / "stderr"]
    with logs[0].open("w") as stdout, logs[1].open("w") as stderr:
        command = [*COMMAND, "run", "--config", str(config), "--num-gpus", "2"]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment())
        try:
            wait_until(lambda: len(journal(out)) >= 4 or process.poll() is not None)
            assert process.poll() is None, logs[1].read_text()
            process.send_signal(signal.SIGTERM)
            code = process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait()
    return Launched(out=out, code=code, stdout=logs[0].read_text(), stderr=logs[1].read_text())


@pytest.mark.slow
def test_a_process_that_trained_ends_without_tearing_down_the_interpreter(
    run_alone: tuple[Path, End], tmp_path: Path
) -> None:
    config, end = run_alone
    assert (end.code, end.printed) == (0, ["thread", "exit handler"]), end.stderr
    end = end_of("run", "--config", config, "--set", "zero.stage=7")
    assert (end.code, end.printed) == (2, ["exit handler", "torn down"])  # it was reported before anything was begun
    assert end.stderr == "error: train.yaml: zero.stage: got 7; expected at most 3\n"
    out = shutil.copytree(config.parent / "out", tmp_path / "out")
    other = ("learning_rates.projector=2e-3", "learning_rates.encoder=1e-3", f"out={out}")
    end = end_of("run", "--config", config, *(f"--set={setting}" for setting in other))
    assert (end.code, end.printed) == (2, ["exit handler"])  # a checkpoint does not fit: the ranks had met
    assert "learning_rates.encoder: is 0.001, the checkpoint" in end.stderr


@pytest.mark.parametrize(
    ("end", "code", "error"), [("sys.exit()", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit('why')", 1, "why\n")]
)
@pytest.mark.parametrize("trained", [False, True])
def test_a_process_ends_with_the_code_that_its_command_gave(end: str, code: int, error: str, trained: bool) -> None:
    begun = "sys.modules['trainer.distributed.deepspeed_engine'] = None\n" if trained else ""
    ended = end_of("config", before=f"{begun}def main():\n    {end}\ncli.main = main")
    assert (ended.code, ended.stderr) == (code, error)
    assert ended.printed == (["exit handler"] if trained else ["exit handler", "torn down"])


def test_a_closed_pipe_at_the_very_end_gives_no_traceback(tmp_path: Path) -> None:
    code = PROGRAM.format(
        before="sys.modules['trainer.distributed.deepspeed_engine'] = None\nprint('much' * 9)\ncli.main = int"
    )
    reader, writer = os.pipe()
    os.close(reader)
    unbuffered = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=unbuffered
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.slow
def test_a_plain_process_trains_and_leaves_config_metrics_and_boards(alone: Path) -> None:
    assert {path.name for path in alone.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "lock",
        "metrics.jsonl",
        "tensorboard",
    }
    resolved = yaml.safe_load((alone / "config.yaml").read_text())
    assert resolved["batch"]["packed"] is True
    entry = journal(alone)[-1]
    expected = {"loss", "lr", "grad_norm", "tokens_per_second", "trained_tokens_per_second", "images_per_second"}
    expected |= {
        "records_per_second",
        "padding_share",
        "mfu",
        "data_wait_share",
        "memory_bytes",
        "epoch",
        "seconds_per_step",
    }
    assert expected <= set(entry)
    assert entry["memory_bytes"] > 1 << 20
    assert list((alone / "tensorboard").iterdir())


@pytest.mark.slow
def test_num_gpus_goes_through_deepspeeds_launcher_and_trains_the_same(alone: Path, launched: Launched) -> None:
    assert launched.stdout == ""
    assert losses(launched.out)[:4] == pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.slow
def test_a_signal_to_the_launching_process_saves_on_all_ranks(launched: Launched) -> None:
    assert launched.code == 0, launched.stderr
    steps = len(losses(launched.out))
    (checkpoint,) = (launched.out / "checkpoints").glob("step-*")
    assert checkpoint.name == f"step-{steps:08d}"
    assert json.loads((checkpoint / "checkpoint.json").read_text())["step"] == steps
    assert not (launched.out / "stop").exists()


@pytest.mark.slow
def test_torchrun_starts_it_as_well(build: Path, alone: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, build, schedule={"steps": 4, **SAME})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run("run", "--config", config, command=[*torchrun, "-m", "trainer.cli"])
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "out") == pytest.approx(losses(alone), rel=1e-6)
