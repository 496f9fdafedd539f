"""A run of two ranks of which one is lost: the other ends, says why, and the same command resumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import train_runs, trainer_processes
from tests.support.train_runs import Done, Ranks, config_file, journal
from tests.support.waiting import LIMIT_S

LONG = {"steps": 100_000, "kind": "constant", "warmup_ratio": 0.0}

build = pytest.fixture(scope="module")(trainer_processes.make_build)


@contextmanager
def running(config: Path, *settings: str) -> Iterator[Ranks]:
    """A run of two ranks that has made some steps; what is left of it is killed."""
    run = train_runs.start(config, *settings, ranks=2)
    try:
        run.wait_for_step(config.parent / "out", 3)
        yield run
    finally:
        for process in run.processes:
            if process.is_alive():
                process.kill()


def ended(run: Ranks, survivor: int, lost: int) -> Done:
    """How it ended, after the survivor ended by itself."""
    run.processes[survivor].join(LIMIT_S)
    assert run.processes[survivor].exitcode == 1, run.output()
    run.processes[lost].kill()
    return run.wait()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_rank_is_named_by_the_other_which_ends_at_once(build: Path, tmp_path: Path, lost: int) -> None:
    config = config_file(tmp_path, build, schedule=LONG, checkpoints={"every": 2})
    with running(config) as run:
        run.processes[lost].kill()
        done = ended(run, 1 - lost, lost)
    assert "Traceback" not in done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank {lost} on ")
    assert " was lost in step " in line
    assert "its process ended" in line
    before = journal(config.parent / "out")[-1]["step"]
    resumed = train_runs.train(config, f"schedule.steps={before + 2}", ranks=1)
    assert "resuming after step" in resumed.output


def test_a_rank_that_hangs_with_its_host_ends_the_run_after_a_set_time(build: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, build, schedule=LONG, checkpoints={"every": 0})
    with running(config, "distributed.lost_after_s=2") as run:
        assert run.processes[1].pid is not None
        os.kill(run.processes[1].pid, signal.SIGSTOP)  # its connections stay, as behind a network that was cut
        done = ended(run, 0, 1)
    assert "error: rank 1 on " in done.output
    assert "gave no sign of life for 2 s; its host or the network failed; all ranks end" in done.output
