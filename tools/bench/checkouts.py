"""Running Python with the packages of this checkout or of another one, each time in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_python(
    checkout: Path, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[str, float]:
    """The last line that it writes, and the CPU seconds of its processes, user and system.

    environment: added to this process's. Call it from one thread at a time. Raises SystemExit if the command fails.
    """
    added = {"PYTHONPATH": str(checkout), "TRANSFORMERS_VERBOSITY": "error", **(environment or {})}
    command = [sys.executable, *arguments]
    start = _children_seconds()
    done = subprocess.run(command, cwd=checkout, env=os.environ | added, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1], _children_seconds() - start


def _children_seconds() -> float:
    """Of all processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
