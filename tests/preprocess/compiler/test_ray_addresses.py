"""Where the cluster of a build is: addresses that nobody answers, and tokens."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.ray_clusters import end, ray_variables
from tests.support.small_blends import image_blend
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("no_hang"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.mark.parametrize(
    ("address", "problem"),
    [("127.0.0.1:6398", "Connection refused"), ("nonsense", "Invalid address")],
)
def test_an_address_without_a_cluster_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, problem: str
) -> None:
    arguments = ("build", "--blend", image_blend(tmp_path, 1), "--out", tmp_path / "build", "--set", "engine=ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    done = run_command(*arguments)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"RAY_ADDRESS={address}: does not start" in line
    assert problem in line


def test_a_cluster_that_never_answers_ends_the_build_with_a_line() -> None:
    program = (
        "import time\nfrom preprocess.compiler import ray_engine\nwith ray_engine._ended_after(0.2, 'it hangs'):\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{program}    time.sleep(600)"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "error: it hangs\n")
    done = subprocess.run(
        [sys.executable, "-c", f"{program}    pass\ntime.sleep(0.5)"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_cluster_with_a_token_refuses_another_in_one_line(tmp_path: Path) -> None:
    token = "a-token-of-the-tests-with-enough-characters"
    arguments = ("build", "--blend", image_blend(tmp_path, 1), "--out", tmp_path / "build", "--set", "engine=ray")
    with ray_variables(patient=False), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", token)
        head, port = start_head()
        try:
            patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            done = run_command(*arguments)
            while "no answer in" in done.stderr:  # a busy machine: its raylet ended, see `comes` in ray_clusters
                end(head)
                head, port = start_head()
                patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
                done = run_command(*arguments)
            assert done.returncode == 0, done.stderr
            patch.setenv("RAY_AUTH_TOKEN", token[::-1])
            done = run_command(*arguments, "--set", "seed=1")
            assert done.returncode == 1
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert "does not start (Failed to connect to Ray cluster" in line
            assert "its token" in line
            assert "Traceback" not in done.stderr
        finally:
            end(head)


def start_head() -> tuple[subprocess.Popen[bytes], int]:
    """A cluster of one node that accepts connections, and its port."""
    port = free_port()
    start = ("start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false", f"--port={port}")
    head = subprocess.Popen(
        [Path(sys.executable).parent / "ray", *start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: accepts(port))
    return head, port


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "preprocess.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False
