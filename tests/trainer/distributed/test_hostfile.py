"""Hosts that a launcher starts: what the file says, and hosts that cannot be used; a program is in the place of ssh."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from dst.errors import ConfigError
from tests.support.stub_hosts import stub_programs
from trainer.distributed.hostfile import check_hosts, is_this_host, read_hostfile


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, num_nodes: int | None = None, num_gpus: int | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        read_hostfile(path, num_nodes, num_gpus)
    return list(refused.value.problems)


def test_hosts_are_used_in_the_order_of_the_file_with_their_slots_or_fewer(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# all\nnode-b slots=8\n\n10.0.0.2   slots=4 # spare\nnode-c slots=16\n")
    assert list(read_hostfile(path, None, None).items()) == [("node-b", 8), ("10.0.0.2", 4), ("node-c", 16)]
    assert read_hostfile(path, 2, 3) == {"node-b": 3, "10.0.0.2": 3}
    assert problems(path, 4) == [f"--num-nodes: got 4, and {path} names 3"]
    assert problems(path, 2, 6) == [f"--num-gpus: got 6, and 10.0.0.2 has 4 slots in {path}"]


@pytest.mark.parametrize("line", ["node-a", "node-a slots=0", "node-a slots=-1", "-oProxy slots=1", "node-a slots=8 x"])
def test_a_line_that_is_not_a_host_is_named(tmp_path: Path, line: str) -> None:
    path = hostfile(tmp_path, f"node-b slots=1\n{line}\n")
    assert problems(path) == [f"--hostfile: {path}, line 2: got {line!r}; expected `HOST slots=8`"]


def test_a_file_that_cannot_be_used_is_an_error_not_a_run_on_this_machine_alone(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# none\n")
    assert problems(path) == [f"--hostfile: {path} names no host; expected a line such as `node-a slots=8` for each"]
    path = hostfile(tmp_path, "node-a slots=1\nnode-a slots=2\n")
    assert problems(path) == [f"--hostfile: {path}, line 2: node-a is there twice; sum up its slots"]
    assert problems(tmp_path / "no") == [f"--hostfile: {tmp_path / 'no'} cannot be read (No such file or directory)"]


def test_this_machine_is_known_by_its_names() -> None:
    assert all(map(is_this_host, ("localhost", "127.0.0.1", socket.gethostname())))
    assert not is_this_host("node-a.example")


def test_hosts_that_answer_and_have_folder_and_python_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", stub_programs(tmp_path / "bin", dead=("node-d",)))
    check_hosts({"node-a": 1, "node-b": 1}, tmp_path)
    with pytest.raises(ConfigError) as refused:
        check_hosts({"node-a": 1, "node-d": 1}, tmp_path / "it's not there")
    assert refused.value.problems == [
        f"--hostfile: node-a has no folder {tmp_path}/it's not there; expected this run's folder at the same path",
        "--hostfile: node-d cannot be reached by ssh without a password (ssh: connect to host node-d port 22: No route "
        "to host); try `ssh node-d true`",
    ]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"node-a has no .*python; expected this environment at the same path"):
        check_hosts({"node-a": 1}, tmp_path)


def test_programs_that_are_missing_are_named_before_any_host_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="ssh and pdsh is not installed here; install it, or start torchrun"):
        check_hosts({"node-a": 1}, tmp_path)
