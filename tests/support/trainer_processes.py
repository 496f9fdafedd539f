"""`dsvl-train` in processes of its own, as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import train_runs
from tests.support.waiting import LIMIT_S

COMMAND = [sys.executable, "-m", "trainer.cli"]


def environment() -> dict[str, str]:
    """Where no launcher is running, whatever the tests' own surroundings are."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {**{name: value for name, value in os.environ.items() if name not in launched}, "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path, command: Sequence[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        env=environment(),
    )


def make_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixture."""
    return train_runs.compiled(tmp_path_factory.mktemp("build"))
