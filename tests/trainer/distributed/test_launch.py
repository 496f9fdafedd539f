"""Starting ranks: the launcher's command line, what it passes on to other hosts, and whole runs over several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dst.errors import ConfigError
from tests.support import trainer_processes
from tests.support.paths import ROOT
from tests.support.stub_hosts import slurm_programs, stub_programs
from tests.support.train_runs import config_file, folders, journal, losses
from tests.support.trainer_processes import COMMAND, environment
from tests.support.waiting import LIMIT_S, wait_until
from trainer.distributed import launch
from trainer.distributed.launch import LaunchLayout, command, passed_on
from trainer.distributed.launcher_environment import reserved_port
from trainer.errors import TrainError

CONSTANT = {"kind": "constant", "warmup_ratio": 0.0}

build = pytest.fixture(scope="module")(trainer_processes.make_build)


def hostfile(folder: Path, *hosts: str) -> Path:
    path = folder / "hosts"
    path.write_text("".join(f"{host} slots=8\n" for host in hosts), encoding="utf-8")
    return path


def test_a_hostfile_and_its_layout_are_handed_to_deepspeed(tmp_path: Path) -> None:
    hosts = hostfile(tmp_path, "node-a", "node-b", "node-c")
    layout = LaunchLayout.of(4, 2, hosts)
    made = command(layout, ["run", "--config", "train.yaml", "--set=seed=1"], port=1234)
    assert " ".join(made[1:]) == (
        "-m deepspeed.launcher.runner --log_level error --no_local_rank --module --num_gpus 4 "
        f"--hostfile {hosts} --num_nodes 2 --force_multi trainer.cli run --config train.yaml --set=seed=1"
    )
    assert (layout.world_size, layout.is_single_process, layout.spans_hosts) == (8, False, True)


def test_a_single_host_is_this_machine_only_if_it_has_its_name(tmp_path: Path) -> None:
    far = LaunchLayout.of(None, None, hostfile(tmp_path, "node-a"))
    assert "--force_multi" in command(far, [], port=1)  # or DeepSpeed would train here
    near = LaunchLayout.of(None, None, hostfile(tmp_path, "localhost"))
    assert (near.spans_hosts, near.world_size) == (False, 8)
    assert " --master_addr 127.0.0.1 --master_port 1 " in " ".join(command(near, [], port=1))


def test_layouts_without_a_hostfile_are_on_this_machine() -> None:
    assert LaunchLayout.of(1, None, None).is_single_process
    assert LaunchLayout.of(None, 1, None).is_single_process
    three = LaunchLayout.of(3, None, None)
    assert (three.world_size, three.is_single_process) == (3, False)
    with pytest.raises(ConfigError, match="--num-nodes: got 2 without --hostfile"):
        LaunchLayout.of(8, 2, None)


def test_interfaces_are_passed_on_and_secrets_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ours = {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "ib0", "AWS_SECRET_ACCESS_KEY": "x", "HF_TOKEN": "y"}
    assert passed_on(ours) == ["GLOO_SOCKET_IFNAME=eth1", "NCCL_SOCKET_IFNAME=ib0"]
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nno value\nGLOO_SOCKET_IFNAME=eth2\n", encoding="utf-8")
    assert passed_on(ours)[-2:] == ["NCCL_DEBUG=INFO", "GLOO_SOCKET_IFNAME=eth2"]
    (tmp_path / "mine").write_text("OWN=1\n", encoding="utf-8")
    assert passed_on({**ours, "DS_ENV_FILE": "mine"})[-1] == "OWN=1"


@pytest.mark.parametrize(
    ("program", "code"), [("import os, pathlib; pathlib.Path(os.environ['DSVL_END_FILE']).touch()", 0), ("", None)]
)
def test_a_launcher_that_ends_with_0_before_the_run_is_an_error(
    program: str, code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "command", lambda *_, **__: [sys.executable, "-c", program])
    (tmp_path / "ended").touch()  # of an earlier run
    if code is None:
        with pytest.raises(TrainError, match="the launcher ended before the run: it was killed"):
            launch.launch(LaunchLayout(num_gpus=2), [], tmp_path)
    else:
        assert launch.launch(LaunchLayout(num_gpus=2), [], tmp_path) == code
    assert not (tmp_path / "ended").exists()


@pytest.mark.slow
def test_two_hosts_of_a_hostfile_train_as_one_process_and_end_together(build: Path, tmp_path: Path) -> None:
    alone = config_file(tmp_path / "alone", build, schedule={"steps": 3, **CONSTANT})
    done = trainer_processes.run("run", "--config", alone)
    assert done.returncode == 0, done.stderr
    config = config_file(tmp_path / "over", build, schedule={"steps": 3, **CONSTANT})
    hosts = hostfile(tmp_path, "node-a", "node-b")
    # logins on other hosts have an environment of their own: this one's reaches them only if it is passed on
    variables = {**environment(), "PATH": stub_programs(tmp_path / "bin"), "GLOO_SOCKET_IFNAME": "lo"}
    arguments = [*COMMAND, "run", "--config", str(config), "--hostfile", str(hosts), "--num-gpus", "1"]
    ended = subprocess.run(
        arguments, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=variables, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert losses(config.parent / "out") == pytest.approx(losses(alone.parent / "out"), abs=2e-5)


def agent(config: Path, endpoint: int, log: Path, *, is_host: bool) -> subprocess.Popen[bytes]:
    """torchrun as one of one or two hosts, with one rank on each. is_host: it holds what agents agree upon."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3"]
    line += ["--rdzv-backend=c10d", "--rdzv-id=run", f"--rdzv-endpoint=127.0.0.1:{endpoint}"]
    line += [
        f"--rdzv-conf=last_call_timeout=20,read_timeout={LIMIT_S},is_host={int(is_host)}",
        "--local-addr=127.0.0.1",
        "-m",
        "trainer.cli",
        "run",
        "--config",
    ]
    with log.open("wb") as output:
        return subprocess.Popen(
            [*line, str(config)], stdout=output, stderr=output, env=environment(), start_new_session=True
        )


@pytest.mark.slow
def test_torchrun_goes_on_with_the_hosts_that_are_left_from_the_newest_checkpoint(build: Path, tmp_path: Path) -> None:
    steps = 80
    config = config_file(tmp_path, build, schedule={"steps": steps, **CONSTANT}, checkpoints={"every": 5, "keep": 2})
    out = config.parent / "out"
    with reserved_port() as endpoint:
        # at the same time: where one begins alone and the other joins later, torch's agents may wait for each other
        stays = agent(config, endpoint, tmp_path / "stays", is_host=True)
        leaves = agent(config, endpoint, tmp_path / "leaves", is_host=False)
        try:
            wait_until(lambda: any(entry["step"] > 6 for entry in journal(out)) or stays.poll() is not None)
            assert stays.poll() is None, (tmp_path / "stays").read_text()
            os.killpg(leaves.pid, signal.SIGKILL)
            for worker in workers_of(config, but_of=stays.pid):
                os.kill(worker, signal.SIGKILL)
            assert stays.wait(LIMIT_S) == 0, (tmp_path / "stays").read_text()
        finally:
            for each in (stays, leaves):
                if each.poll() is None:
                    os.killpg(each.pid, signal.SIGKILL)
                each.wait()
    output = (tmp_path / "stays").read_text()
    assert " was lost " in output
    assert "resuming after step" in output
    assert journal(out)[-1]["step"] == steps


@pytest.mark.slow
def test_slurms_script_trains_on_its_nodes_and_saves_before_the_time_limit(build: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, build, schedule={"steps": 100_000, **CONSTANT}, checkpoints={"every": 0})
    out = tmp_path / "of slurm"
    with reserved_port() as port:
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "RDZV_PORT": str(port)}
        own = {"PATH": slurm_programs(tmp_path / "bin"), "OUT": str(out), "PYTHONPATH": str(ROOT)}
        script = subprocess.Popen(
            [str(ROOT / "examples" / "slurm.sh"), str(config), "--set", "logging.every=2"],
            stderr=subprocess.PIPE,
            text=True,
            env={**environment(), **job, **own},
            start_new_session=True,
        )
        try:
            wait_until(lambda: len(journal(out)) > 1 or script.poll() is not None)
            script.send_signal(signal.SIGUSR1)
            output = script.communicate(timeout=LIMIT_S)[1]
        finally:
            if script.poll() is None:
                os.killpg(script.pid, signal.SIGKILL)
    assert script.returncode == 0, output
    assert "the same command resumes from there" in output
    assert len(folders(out)) == 1
    assert not (out / "stop").exists()


def workers_of(config: Path, *, but_of: int) -> list[int]:
    """The ranks that train with this file, but for those of one agent: torchrun's ranks have sessions of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if (
                str(config).encode() in line
                and b"trainer.cli" in line
                and parent != but_of
                and int(entry.name) != but_of
            ):
                found.append(int(entry.name))
    return found
