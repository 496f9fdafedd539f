"""The hosts of a run that DeepSpeed's launcher starts over ssh: the hostfile, and whether each host can be used.

Rule: what the launcher would meet as a traceback, or pass over (a hostfile that is not there trains on this machine
alone), is a line here, before it starts.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dst.errors import ConfigError

SSH_TIMEOUT_S = 15
_LINE = re.compile(r"(?P<host>[\w.:@%-]+)\s+slots=(?P<slots>[1-9]\d{0,3})\s*(#.*)?")
_THIS_HOST = ("localhost", "127.0.0.1", "::1")


def read_hostfile(path: Path, num_nodes: int | None, num_gpus: int | None) -> dict[str, int]:
    """The ranks of each host, in the file's order: of the first `num_nodes` hosts, `num_gpus` or all their slots.

    Raises ConfigError with all problems.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError([f"--hostfile: {path} cannot be read ({why})"]) from None
    hosts: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["host"].startswith("-"):
            problems.append(f"--hostfile: {path}, line {number}: got {line.strip()!r}; expected `HOST slots=8`")
        elif match["host"] in hosts:
            problems.append(f"--hostfile: {path}, line {number}: {match['host']} is there twice; sum up its slots")
        else:
            hosts[match["host"]] = int(match["slots"])
    if not hosts and not problems:
        problems.append(f"--hostfile: {path} names no host; expected a line such as `node-a slots=8` for each")
    if num_nodes is not None and not problems and num_nodes > len(hosts):
        problems.append(f"--num-nodes: got {num_nodes}, and {path} names {len(hosts)}")
    used = dict(list(hosts.items())[:num_nodes])
    problems += [
        f"--num-gpus: got {num_gpus}, and {host} has {slots} slots in {path}"
        for host, slots in used.items()
        if num_gpus is not None and num_gpus > slots
    ]
    if problems:
        raise ConfigError(problems)
    return {host: num_gpus or slots for host, slots in used.items()}


def is_this_host(name: str) -> bool:
    """Whether it is surely this machine; ssh decides about other names."""
    return name in (*_THIS_HOST, socket.gethostname(), socket.getfqdn())


def check_hosts(hosts: Mapping[str, int], folder: Path) -> None:
    """Whether ranks can be started on each. Raises ConfigError with a line for each host where they cannot."""
    missing = [program for program in ("ssh", "pdsh") if shutil.which(program) is None]
    if missing:
        raise ConfigError(
            [
                f"--hostfile: several hosts are started through ssh and pdsh, and {' and '.join(missing)} is not "
                "installed here; install it, or start torchrun on each host (docs/hosts.md)"
            ]
        )
    with ThreadPoolExecutor(min(32, len(hosts))) as pool:
        problems = list(filter(None, pool.map(lambda host: _problem(host, folder), hosts)))
    if problems:
        raise ConfigError(problems)


def _problem(host: str, folder: Path) -> str | None:
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_TIMEOUT_S}"]
    try:
        done = subprocess.run(
            ["ssh", *options, host, f"{_test('-d', folder)} || exit 3; {_test('-x', Path(sys.executable))} || exit 4"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=2 * SSH_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"--hostfile: {host} does not answer to ssh within {2 * SSH_TIMEOUT_S} s"
    match done.returncode:
        case 0:
            return None
        case 3:
            return f"--hostfile: {host} has no folder {folder}; expected this run's folder at the same path"
        case 4:
            return f"--hostfile: {host} has no {sys.executable}; expected this environment at the same path"
    said = _last_line(done.stderr.splitlines())
    return f"--hostfile: {host} cannot be reached by ssh without a password ({said}); try `ssh {host} true`"


def _test(what: str, path: Path) -> str:
    return f"test {what} {shlex.quote(str(path))}"


def _last_line(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason was given")
