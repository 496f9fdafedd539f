"""kill -9 at any moment, then the same command: the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shards
from tests.support.paths import ROOT
from tests.support.small_blends import build, chat_blend, chat_record, files_of, write_images
from tests.support.waiting import LIMIT_S

PROGRAM = """
import os, signal, sys

folder, log, who, number = os.environ["KILL"].split(os.pathsep)
process = "worker" if __name__ == "__mp_main__" else "parent"
build = os.getppid() if process == "worker" else os.getpid()
log = os.open(log, os.O_WRONLY | os.O_APPEND)
left = int(number) if process == who else -1

def watch(event, arguments):
    global left
    if event == "open":
        changes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
    else:
        changes = event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
    if changes and not isinstance(arguments[0], int) and os.fsdecode(arguments[0]).startswith(folder):
        os.write(log, process[:1].encode())
        left -= 1
        if left == 0:
            os.kill(build, signal.SIGKILL)

sys.addaudithook(watch)
if __name__ == "__main__":
    from preprocess.cli import main
    main()
"""
"""dsvl-prep whose parent process is killed when it, or a worker, is about to change a file below a folder."""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_in_identical_shards(tmp_path: Path) -> None:
    """Five of builds with workers, and fifteen, which start faster, of builds that do all in a forked process."""
    names = write_images(tmp_path / "mine", 120)
    records = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, shard={"max_images": 8}, image={"store": "resized", "size": 112})
    program, log = tmp_path / "program.py", tmp_path / "log"
    program.write_text(PROGRAM)
    log.touch()

    def run(out: Path, who: str, number: int) -> int:
        return subprocess.run(
            [sys.executable, program, "build", "--workers", "2", "--blend", blend, "--out", out],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "KILL": os.pathsep.join([str(out), str(log), who, str(number)]),
            },
            capture_output=True,
            timeout=LIMIT_S,
        ).returncode

    assert run(tmp_path / "whole", "nobody", 0) == 0
    whole = files_of(tmp_path / "whole")
    marks = log.read_bytes()
    most = {"parent": marks.count(b"p"), "worker": marks.count(b"w") // 2}
    moments = random.Random(20)
    killed = 0
    for attempt in range(20):
        if attempt % 4 == 0:
            who = moments.choice(sorted(most))
            code = run(tmp_path / "build", who, moments.randint(1, most[who] // 3))
        else:
            code = forked_build(blend, tmp_path / "build", moments.randint(1, len(marks) // 3))
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if (tmp_path / "build/manifest.json").exists():
            assert files_of(tmp_path / "build") == whole
            (tmp_path / "build/manifest.json").unlink()  # give the next run something to do, and to be killed in
            for shard in list((tmp_path / "build").glob("shards/*/*.tar"))[::3]:
                shard.unlink()
    assert killed >= 10
    assert run(tmp_path / "build", "nobody", 0) == 0
    assert files_of(tmp_path / "build") == whole
    assert shards.verify(shards.open(tmp_path / "build")).problems == []


def forked_build(blend: Path, out: Path, number: int) -> int:
    """The exit code of a build that is killed when it is about to change a file below `out` for the number-th time."""
    process = multiprocessing.get_context("fork").Process(target=_build_and_die, args=(blend, out, number))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode is not None
    return process.exitcode


def _build_and_die(blend: Path, out: Path, number: int) -> None:
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open":
            changes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
        if changes and not isinstance(arguments[0], int) and os.fsdecode(arguments[0]).startswith(str(out)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    build(blend, out=out)
