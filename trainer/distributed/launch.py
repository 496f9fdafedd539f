"""Start a run's processes through DeepSpeed's launcher.

Rule: the launcher runs the same command again, once per rank, with RANK and WORLD_SIZE set, so that the command trains
instead of launching. A signal to stop is passed on as a file in the run's folder. That reaches the ranks on all nodes
and gives them time to save; DeepSpeed's launcher would kill them after 30 seconds.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from trainer.distributed.launcher_environment import reserved_port

STDERR = 2
STOP = "stop"
"""A file of this name in the run's folder ends the run after the current step, with a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchLayout:
    """The nodes and processes of a run."""

    num_gpus: int | None = None
    """Ranks on each node"""
    num_nodes: int | None = None
    hostfile: Path | None = None

    @property
    def is_single_process(self) -> bool:
        """The run has one process, so nothing is launched."""
        return self.hostfile is None and (self.num_nodes or 1) == 1 and (self.num_gpus or 1) == 1

    @property
    def world_size(self) -> int | None:
        """Number of ranks; None if only the launcher knows it."""
        return self.num_gpus if self.num_gpus and self.hostfile is None and (self.num_nodes or 1) == 1 else None


def command(layout: LaunchLayout, arguments: Sequence[str], *, port: int) -> list[str]:
    """The launcher's command line for `dsvl-train` with these arguments. port: for the ranks of a run on one host."""
    line = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error", "--no_local_rank", "--module"]
    if layout.num_gpus is not None:
        line += ["--num_gpus", str(layout.num_gpus)]
    if layout.num_nodes is not None:
        line += ["--num_nodes", str(layout.num_nodes)]
    if layout.hostfile is not None:
        line += ["--hostfile", str(layout.hostfile)]
    if layout.world_size is not None:
        line += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return [*line, "trainer.cli", *arguments]


def launch(layout: LaunchLayout, arguments: Sequence[str], out: Path) -> int:
    """Run `dsvl-train` with these arguments on every rank, and wait for it. Returns the exit code: 0, 1 or 2."""
    with reserved_port() as port:
        return _run(command(layout, arguments, port=port), out)


def _run(command: Sequence[str], out: Path) -> int:
    stop_file = out / STOP
    stop_file.unlink(missing_ok=True)
    # A session of its own, so that Ctrl-C in the terminal reaches this process alone, which passes it on as a file. The
    # launcher logs to stdout, which is for results.
    process = subprocess.Popen(command, start_new_session=True, stdout=STDERR)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            process.send_signal(number)
        else:
            out.mkdir(parents=True, exist_ok=True)
            stop_file.touch()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)
    return code if code in (0, 1, 2) else 1
