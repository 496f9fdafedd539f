"""Builds that are killed at random moments, and builds whose writes fail at a random size; both are then finished."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from tests.support.small_blends import build
from tools.torture.outcomes import Outcomes, loss_of
from tools.torture.small_build import SmallBuild

KILLS_A_BUILD = 4
"""A build is killed so often before it may end"""


def kills(small: SmallBuild, count: int, rng: random.Random) -> Outcomes:
    """SIGKILL for the whole process group, at a random moment of a run's usual time."""
    outcomes = Outcomes("kills")
    started = time.monotonic()
    small.start(small.folder / "timed").communicate()
    usual_s = time.monotonic() - started
    while outcomes.tried < count:
        out = small.folder / f"killed-{outcomes.tried}"
        tries = min(KILLS_A_BUILD, count - outcomes.tried)
        for _ in range(tries):
            process = small.start(out)
            try:
                process.communicate(timeout=rng.uniform(0.1, usual_s))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        loss = loss_of(lambda out=out: _finished(small, out))  # type: ignore[misc]
        for number in range(tries):
            outcomes.count(f"{out.name} ({number + 1} of {tries})", loss)
        shutil.rmtree(out, ignore_errors=True)
    return outcomes


def full_disks(small: SmallBuild, count: int, rng: random.Random) -> Outcomes:
    """No file can grow beyond a random size (RLIMIT_FSIZE), as on a full disk; then the limit is gone."""
    outcomes = Outcomes("full disks")
    largest = max(map(len, small.files.values()))
    for number in range(count):
        out = small.folder / f"full-{number}"
        _, errors = small.start(out, preexec_fn=_file_limit(rng.randrange(64, largest))).communicate()
        text = errors.decode("utf-8", "replace")
        loss = (
            "a traceback: " + text[-200:]
            if "Traceback" in text
            else loss_of(
                lambda out=out: _finished(small, out)  # type: ignore[misc]
            )
        )
        outcomes.count(out.name, loss)
        shutil.rmtree(out, ignore_errors=True)
    return outcomes


def _file_limit(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def _finished(small: SmallBuild, out: object) -> str | None:
    """Finish an interrupted build. An error of the last run is a loss here: nothing is in its way."""
    try:
        build(small.blend, out=out)
    except Exception as error:
        return f"cannot be finished: {type(error).__name__}: {error}"
    return small.difference(out)  # type: ignore[arg-type]
