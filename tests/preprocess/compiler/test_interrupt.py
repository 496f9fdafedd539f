"""kill -9 at any moment, then the same command: the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shards
from tests.support.paths import ROOT
from tests.support.small_blends import chat_blend, chat_record, files_of, write_images
from tests.support.waiting import LIMIT_S

WATCH = """
import os, signal, sys

def watch(folder, left, victim, log):
    \"\"\"Kill a process when this one is about to change a file below a folder for the left-th time.\"\"\"

    def look(event, arguments):
        nonlocal left
        if event == "open":
            changes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
        if changes and not isinstance(arguments[0], int) and os.fsdecode(arguments[0]).startswith(folder):
            log()
            left -= 1
            if left == 0:
                os.kill(victim, signal.SIGKILL)

    sys.addaudithook(look)
"""

PROGRAM = f"""{WATCH}
folder, log, who, number = os.environ["KILL"].split(os.pathsep)
process = "worker" if __name__ == "__mp_main__" else "parent"
log = os.open(log, os.O_WRONLY | os.O_APPEND)
build = os.getppid() if process == "worker" else os.getpid()
watch(folder, int(number) if process == who else -1, build, lambda: os.write(log, process[:1].encode()))
if __name__ == "__main__":
    from preprocess.cli import main
    main()
"""
"""dsvl-prep whose parent process is killed when it, or a worker, is about to change a file below a folder."""

FORKING = f"""{WATCH}
from pathlib import Path
from tests.support.small_blends import build

blend, out = sys.argv[1:]
for number in sys.stdin:
    child = os.fork()
    if not child:
        try:
            watch(out, int(number), os.getpid(), lambda: None)
            build(Path(blend), out=Path(out))
            os._exit(0)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""For each number, a build in one process that is killed at this change of a file; prints how it ended."""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_in_identical_shards(tmp_path: Path) -> None:
    """Five of builds with workers, and fifteen of builds in one process, which is forked and so starts faster."""
    names = write_images(tmp_path / "mine", 60)
    records = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, shard={"max_images": 4}, image={"store": "resized", "size": 112})
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
    forking = subprocess.Popen(
        [sys.executable, "-c", FORKING, blend, tmp_path / "build"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    killed = 0
    for attempt in range(20):
        if attempt % 4 == 0:
            who = moments.choice(sorted(most))
            code = run(tmp_path / "build", who, moments.randint(1, most[who] // 3))
        else:
            assert forking.stdin is not None
            assert forking.stdout is not None
            print(moments.randint(1, len(marks) // 3), file=forking.stdin, flush=True)
            code = int(forking.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if (tmp_path / "build/manifest.json").exists():
            assert files_of(tmp_path / "build") == whole
            (tmp_path / "build/manifest.json").unlink()  # give the next run something to do, and to be killed in
            for shard in list((tmp_path / "build").glob("shards/*/*.tar"))[::3]:
                shard.unlink()
    forking.communicate(timeout=LIMIT_S)
    assert killed >= 10
    assert run(tmp_path / "build", "nobody", 0) == 0
    assert files_of(tmp_path / "build") == whole
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
