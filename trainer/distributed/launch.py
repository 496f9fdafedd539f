"""Start a run's processes through DeepSpeed's launcher.

Rule: the launcher runs the same command again, once per rank, with RANK and WORLD_SIZE set, so that the command trains
instead of launching. A signal to stop is passed on as a file in the run's folder. That reaches the ranks on all nodes
and gives them time to save; DeepSpeed's launcher would kill them after 30 seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from dst.errors import ConfigError
from trainer.distributed.hostfile import check_hosts, is_this_host, read_hostfile
from trainer.distributed.launcher_environment import reserved_port
from trainer.errors import TrainError

STDERR = 2
STOP = "stop"
"""A file of this name in the run's folder ends the run after the current step, with a checkpoint."""

PASSED_ON = ("GLOO_", "NCCL_", "TP_", "FI_", "UCX_", "OMP_", "TORCH_", "HF_HOME", "HF_HUB_OFFLINE", "DSVL_")
"""What other hosts get of this one's environment, by the beginnings of names: interfaces, and where files are. Never
credentials: they would be part of a command line."""

END_FILE = "DSVL_END_FILE"
"""The environment variable with the file that the first rank makes when its run ends as it should: DeepSpeed's launcher
exits with 0 also if the process that watches the ranks was killed."""

_ENV_FILE = "DS_ENV_FILE"
_ENV_FILE_FOLDERS = ("~", ".")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchLayout:
    """The nodes and processes of a run."""

    num_gpus: int | None = None
    """Ranks on each node"""
    hostfile: Path | None = None
    hosts: Mapping[str, int] = field(default_factory=dict)
    """The ranks of each host that the run uses, of the hostfile"""

    @classmethod
    def of(cls, num_gpus: int | None, num_nodes: int | None, hostfile: Path | None) -> LaunchLayout:
        """From the command line's options. Raises ConfigError."""
        if hostfile is None and (num_nodes or 1) > 1:
            raise ConfigError(
                [f"--num-nodes: got {num_nodes} without --hostfile, which names them (docs/hosts.md); or use torchrun"]
            )
        hosts = read_hostfile(hostfile, num_nodes, num_gpus) if hostfile else {}
        return cls(num_gpus=num_gpus, hostfile=hostfile, hosts=hosts)

    @property
    def is_single_process(self) -> bool:
        """The run has one process, so nothing is launched."""
        return not self.hosts and (self.num_gpus or 1) == 1

    @property
    def spans_hosts(self) -> bool:
        """Whether any rank is on another machine."""
        return bool(self.hosts) and not (len(self.hosts) == 1 and is_this_host(next(iter(self.hosts))))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return sum(self.hosts.values()) if self.hosts else self.num_gpus or 1


def command(layout: LaunchLayout, arguments: Sequence[str], *, port: int) -> list[str]:
    """The launcher's command line for `dsvl-train` with these arguments. port: for the ranks of a run on one host."""
    line = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "error", "--no_local_rank", "--module"]
    if layout.num_gpus is not None:
        line += ["--num_gpus", str(layout.num_gpus)]
    if layout.hostfile is not None:
        line += ["--hostfile", str(layout.hostfile), "--num_nodes", str(len(layout.hosts))]
    if layout.spans_hosts:
        line += ["--force_multi"]  # a single host would be taken for this one
    else:
        line += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return [*line, "trainer.cli", *arguments]


def launch(layout: LaunchLayout, arguments: Sequence[str], out: Path) -> int:
    """Run `dsvl-train` with these arguments on every rank, and wait for it. Returns the exit code: 0, 1 or 2.

    Raises ConfigError if a host cannot be used, TrainError if the launcher was killed.
    """
    if layout.spans_hosts:
        check_hosts(layout.hosts, Path.cwd())
    with reserved_port() as port, tempfile.TemporaryDirectory() as scratch:
        end_file = out.absolute() / "ended"
        variables = {**os.environ, END_FILE: str(end_file)}
        environment = Path(scratch) / "environment"
        environment.write_text("".join(f"{line}\n" for line in passed_on(variables)), encoding="utf-8")
        end_file.unlink(missing_ok=True)
        try:
            code = _run(command(layout, arguments, port=port), {**variables, _ENV_FILE: str(environment)}, out)
            if code == 0 and not end_file.exists():
                raise TrainError(
                    "the launcher ended before the run: it was killed, most often because memory ran out; ranks that "
                    "were left on this host are asked to save and end; then the same command resumes from the newest "
                    "checkpoint, if there is one"
                )
        finally:
            end_file.unlink(missing_ok=True)
        return code


def report_end() -> None:
    """The run of this rank ended as it should."""
    if os.environ.get("RANK") == "0" and END_FILE in os.environ:
        Path(os.environ[END_FILE]).touch()


def passed_on(environment: Mapping[str, str]) -> list[str]:
    """NAME=value of what other hosts get; what the user's own file of DeepSpeed says comes last, and wins."""
    lines = [f"{name}={value}" for name, value in sorted(environment.items()) if name.startswith(PASSED_ON)]
    for folder in _ENV_FILE_FOLDERS:
        own = Path(folder).expanduser() / environment.get(_ENV_FILE, ".deepspeed_env")
        if own.is_file():
            lines += [line.strip() for line in own.read_text(encoding="utf-8").splitlines() if "=" in line]
    return list(dict.fromkeys(lines))


def _run(command: Sequence[str], environment: Mapping[str, str], out: Path) -> int:
    stop_file = out / STOP
    stop_file.unlink(missing_ok=True)
    # A session of its own, so that Ctrl-C in the terminal reaches this process alone, which passes it on as a file. The
    # launcher logs to stdout, which is for results.
    process = subprocess.Popen(command, start_new_session=True, stdout=STDERR, env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            process.send_signal(number)
        else:
            out.mkdir(parents=True, exist_ok=True)
            stop_file.touch()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
        with suppress(ProcessLookupError):  # ranks of a launcher that was killed; there are none else
            os.killpg(process.pid, signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)
    return code if code in (0, 1, 2) else 1
