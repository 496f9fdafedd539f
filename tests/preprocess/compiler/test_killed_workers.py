"""Killed workers and Ctrl-C lose nothing: a build carries on, or ends clearly and the same command resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.in_process import without_processes
from tests.support.small_blends import (
    build,
    chat_blend,
    chat_record,
    files_of,
    jpeg,
)
from tests.support.waiting import LIMIT_S, wait_until

COMMAND = [sys.executable, "-W", "error", "-m", "preprocess.cli", "build"]

pytestmark = pytest.mark.usefixtures("no_hang")


@pytest.fixture(scope="module")
def long_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A blend that takes two workers a second or two, and what it should give."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "mine").mkdir()
    for number in range(40):
        (folder / f"mine/{number}.jpg").write_bytes(jpeg(number, (700, 500)))
    records = [chat_record(number, images=[f"{number % 40}.jpg"], rounds=2) for number in range(320)]
    blend = chat_blend(folder, records, shard={"max_images": 20}, image={"store": "resized", "size": 224})
    with without_processes():
        build(blend, out=folder / "whole")
    return folder, files_of(folder / "whole")


def started(folder: Path, out: str) -> subprocess.Popen[str]:
    """The build in a process group of its own and with Ctrl-C in force, as a terminal starts it.

    A test run in the background of a shell ignores Ctrl-C, and so would all that it starts.
    """
    return subprocess.Popen(
        [*COMMAND, "--blend", str(folder / "blend.yaml"), "--out", str(folder / out), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until(ready: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What `ready` finds, as soon as it finds something; the process is there until then."""

    def look() -> Any:
        assert process.poll() is None, process.communicate()[1]
        return ready()

    return wait_until(look)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_killed_while_it_reads_is_replaced_and_changes_no_byte(
    long_build: tuple[Path, dict[str, bytes]],
) -> None:
    folder, whole = long_build
    process = started(folder, "killed-reading")
    os.kill(until(lambda: workers_of(process), process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert files_of(folder / "killed-reading") == whole


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_killed_while_it_compiles_is_replaced_and_changes_no_byte(
    long_build: tuple[Path, dict[str, bytes]],
) -> None:
    folder, whole = long_build
    process = started(folder, "killed-compiling")
    until(lambda: list((folder / "killed-compiling").glob(".cache/staged/shards/*/*.tar")), process)
    os.kill(until(lambda: workers_of(process), process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert files_of(folder / "killed-compiling") == whole


@pytest.mark.parametrize("stage", ["workers starting", "compiling"])
def test_ctrl_c_ends_with_code_1_and_no_traceback_and_the_same_command_resumes(
    long_build: tuple[Path, dict[str, bytes]], stage: str
) -> None:
    folder, whole = long_build
    out = f"stopped-{stage.split()[0]}"
    process = started(folder, out)
    if stage == "compiling":
        until(lambda: list((folder / out).glob(".cache/staged/shards/*/*.tar")), process)
    elif sys.platform == "linux":
        for worker in until(lambda: workers_of(process), process):
            status = Path(f"/proc/{worker}/status").read_text()
            blocked = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk:"))
            assert blocked & 1 << signal.SIGINT - 1  # from the start: one that is importing would print a traceback
    else:
        until(lambda: (folder / out / ".cache/lock").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "Traceback" not in errors, errors
    assert "stopped; the same command resumes from here" in errors
    assert not (folder / out / "manifest.json").exists()
    with without_processes():
        build(folder / "blend.yaml", out=folder / out)
    assert files_of(folder / out) == whole
