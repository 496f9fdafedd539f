"""The command `dsvl-train` in real processes: launchers, signals, exit codes, errors without tracebacks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from tests.support import train_runs
from tests.support.heavy_packages import HEAVY
from tests.support.train_runs import config_file, journal, losses
from tests.support.waiting import LIMIT_S, wait_until
from trainer import cli
from trainer.distributed import launch

COMMAND = [sys.executable, "-m", "trainer.cli"]

SAME = {"kind": "constant", "warmup_ratio": 0.0}
"""With this schedule, the first steps of runs of any length are the same."""

PROGRAM = """
import atexit, os, sys, threading
class Kept:
    def __del__(self, write=os.write):
        write(1, b"torn down\\n")
kept = Kept()
atexit.register(print, "exit handler")
from trainer import cli
{before}
cli.program()
"""


def environment() -> dict[str, str]:
    """Where no launcher is running, whatever the tests' own surroundings are."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {**{name: value for name, value in os.environ.items() if name not in launched}, "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path, command: Sequence[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        env=environment(),
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.compiled(tmp_path_factory.mktemp("cli"))


class End(NamedTuple):
    """How a process of PROGRAM ended, which prints whether its interpreter was torn down."""

    code: int
    printed: list[str]
    """The last lines of stdout"""
    stderr: str


def end_of(*arguments: str | Path, before: str = "") -> End:
    done = run("-c", PROGRAM.format(before=before), *arguments, command=[sys.executable])
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]  # torch 2.9 prints there
    return End(done.returncode, lines[-3:], done.stderr)


@pytest.fixture(scope="module")
def run_alone(build: Path) -> tuple[Path, End]:
    """The configuration of a run of one process, without any launcher, and how it ended."""
    schedule = {"steps": 4, **SAME}
    config = config_file(build.parent / "alone", build, schedule=schedule, logging={"tensorboard": True})
    thread = "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'))).start()"
    return config, end_of("run", "--config", config, before=thread)


@pytest.fixture(scope="module")
def alone(run_alone: tuple[Path, End]) -> Path:
    """The folder of that run."""
    config, end = run_alone
    assert end.code == 0, end.stderr
    assert "step 4/4  loss " in end.stderr
    return config.parent / "out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A run of two ranks that a signal to the launching process ended."""

    out: Path
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def launched(build: Path) -> Launched:
    """It has made at least four steps."""
    folder = build.parent / "launched"
    schedule = {"steps": 100_000, **SAME}
    config = config_file(folder, build, schedule=schedule, checkpoints={"every": 0}, zero={"stage": 3})
    out, logs = folder / "out", [folder / "stdout", folder / "stderr"]
    with logs[0].open("w") as stdout, logs[1].open("w") as stderr:
        command = [*COMMAND, "run", "--config", str(config), "--num-gpus", "2"]
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment())
        try:
            wait_until(lambda: len(journal(out)) >= 4 or process.poll() is not None)
            assert process.poll() is None, logs[1].read_text()
            process.send_signal(signal.SIGTERM)
            code = process.wait(LIMIT_S)
        finally:
            process.kill()
            process.wait()
    return Launched(out=out, code=code, stdout=logs[0].read_text(), stderr=logs[1].read_text())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["learning_rates.projectr=1"], "learning_rates.projectr: unknown key; did you mean projector?"),
        (["learning_rates={}", "learning_rates.projector=null"], "learning_rates: nothing is trained; set a learning"),
        (["batch.micro_batch_size=3"], "batch.global_batch_size: got 4, which 1 rank cannot share by"),
        (["build=nowhere"], "nowhere: no manifest.json there; it is not a finished build"),
        (["model={init_from: nowhere}"], "model.init_from: nowhere: no such folder; expected a folder that"),
    ],
)
def test_what_the_file_alone_shows_is_said_before_torch_is_imported(
    settings: list[str], problem: str, build: Path, tmp_path: Path
) -> None:
    arguments = ["run", "--config", str(config_file(tmp_path, build)), *(f"--set={setting}" for setting in settings)]
    code = f"""
import sys
from trainer.cli import main
sys.argv = ["dsvl-train", *{arguments!r}]
try:
    main()
finally:
    print(*sys.modules)
"""
    done = run("-c", code, command=[sys.executable])
    assert done.returncode == (1 if problem.startswith("nowhere") else 2)
    assert problem in done.stderr
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["config"], ["--version"]])
def test_help_and_config_load_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from trainer.cli import cli
try:
    cli({arguments!r})
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = run("-c", code, command=[sys.executable])
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not HEAVY & set(done.stderr.split())


def test_config_prints_yaml_also_where_deepspeeds_launcher_adds_its_option() -> None:
    printed = yaml.safe_load(run("--local_rank=1", "config").stdout)
    assert printed["batch"]["global_batch_size"] == 16
    assert printed["lora"]["decoder"] is None


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_an_install_of_the_data_half_says_what_training_needs(build: Path, tmp_path: Path, package: str) -> None:
    arguments = ["dsvl-train", "run", "--config", str(config_file(tmp_path, build))]
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv = {arguments}; from trainer.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert package in line
    assert "dsvl-train needs" in line
    assert "pip install 'dsvl[train]'" in line


@pytest.mark.slow
def test_a_process_that_trained_ends_without_tearing_down_the_interpreter(
    run_alone: tuple[Path, End], tmp_path: Path
) -> None:
    config, end = run_alone
    assert (end.code, end.printed) == (0, ["thread", "exit handler"]), end.stderr
    end = end_of("run", "--config", config, "--set", "zero.stage=7")
    assert (end.code, end.printed) == (2, ["exit handler", "torn down"])  # it was reported before anything was begun
    assert end.stderr == "error: train.yaml: zero.stage: got 7; expected at most 3\n"
    out = shutil.copytree(config.parent / "out", tmp_path / "out")
    other = ("learning_rates.projector=2e-3", "learning_rates.encoder=1e-3", f"out={out}")
    end = end_of("run", "--config", config, *(f"--set={setting}" for setting in other))
    assert (end.code, end.printed) == (2, ["exit handler"])  # a checkpoint does not fit: the ranks had met
    assert "learning_rates.encoder: is 0.001, the checkpoint" in end.stderr


@pytest.mark.parametrize(
    ("end", "code", "error"), [("sys.exit()", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit('why')", 1, "why\n")]
)
@pytest.mark.parametrize("trained", [False, True])
def test_a_process_ends_with_the_code_that_its_command_gave(end: str, code: int, error: str, trained: bool) -> None:
    begun = "sys.modules['trainer.distributed.deepspeed_engine'] = None\n" if trained else ""
    ended = end_of("config", before=f"{begun}def main():\n    {end}\ncli.main = main")
    assert (ended.code, ended.stderr) == (code, error)
    assert ended.printed == (["exit handler"] if trained else ["exit handler", "torn down"])


def test_a_closed_pipe_at_the_very_end_gives_no_traceback(tmp_path: Path) -> None:
    code = PROGRAM.format(
        before="sys.modules['trainer.distributed.deepspeed_engine'] = None\nprint('much' * 9)\ncli.main = int"
    )
    reader, writer = os.pipe()
    os.close(reader)
    unbuffered = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=unbuffered
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


Fail = Callable[..., list[str]]


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Runs `dsvl-train`, which fails, in this process, which has torch loaded; returns the lines of stderr."""

    def fail(*arguments: str | Path, code: int) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["dsvl-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
        return capsys.readouterr().err.splitlines()

    return fail


def test_problems_end_with_exit_code_2_and_a_line_each(build: Path, tmp_path: Path, problems: Fail) -> None:
    config = config_file(
        tmp_path, build, batch={"global_batch_size": 3}, expect={"template": "vicuna"}, evaluation={"every": -1}
    )

    wrong_key = "error: train.yaml: zero.stge: unknown key; did you mean stage?"
    wrong_value = "error: train.yaml: evaluation.every: got -1; expected at least 0"
    assert problems("run", "--config", config, "--set", "zero.stge=1", code=2) == [wrong_key, wrong_value]
    reported = problems("run", "--config", config, "--set", "zero.stge=1", "--set", f"build={tmp_path}", code=2)
    assert reported[:2] == [wrong_key, wrong_value]
    assert f"error: build: {tmp_path}: no manifest.json there" in reported[2]
    assert problems("run", "--config", config, code=2) == [wrong_value]
    assert "--config" in "".join(problems("run", code=2))
    assert "missing.yaml" in "".join(problems("run", "--config", tmp_path / "missing.yaml", code=2))


def test_a_device_without_memory_left_is_reported_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of 139 GiB.")

    monkeypatch.setattr(cli, "cli", run_out)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: CUDA out of memory; in training lower batch.micro_batch_size or batch.max_images, ")
    assert len(error.splitlines()) == 1


def test_a_hostfile_and_its_layout_are_handed_to_deepspeed() -> None:
    nodes = launch.LaunchLayout(num_gpus=8, num_nodes=2, hostfile=Path("hosts"))
    made = launch.command(nodes, ["run", "--config", "train.yaml", "--set=seed=1"], port=1234)
    assert " ".join(made[1:]) == (
        "-m deepspeed.launcher.runner --log_level error --no_local_rank --module --num_gpus 8 --num_nodes 2 "
        "--hostfile hosts trainer.cli run --config train.yaml --set=seed=1"
    )
    assert nodes.world_size is None
    assert not nodes.is_single_process
    assert launch.LaunchLayout(num_gpus=1).is_single_process
    assert launch.LaunchLayout(num_gpus=3).world_size == 3


def test_problems_of_build_and_ranks_come_together_then_those_of_the_model_before_anything_starts(
    build: Path, tmp_path: Path, problems: Fail
) -> None:
    config = config_file(
        tmp_path,
        build,
        batch={"global_batch_size": 3, "max_length": 20},
        expect={"template": "vicuna"},
        model={
            "encoder": {"kind": "tiny", "config": {"image_size": 48, "patch_size": 16}},
            "decoder": {"config": {"model_type": "llama", "max_position_embeddings": 64}},
        },
    )

    def errors(*settings: str) -> list[str]:
        lines = problems("run", "--config", config, "--num-gpus", "2", *settings, code=2)
        return [line for line in lines if line.startswith("error: ")]

    assert [line.split(": ")[1] for line in errors()] == ["expect.template", "batch.global_batch_size"]
    of_model = errors("--set", "expect.template=null", "--set", "batch.global_batch_size=4")
    assert [line.split(": ")[1] for line in of_model] == [
        "batch.max_length, batch.max_images",
        "model.decoder",
        "model.encoder",
        "model.projector",
    ]
    assert "allows 64 positions but this build has samples of up to 128" in of_model[1]
    assert not (tmp_path / "out").exists()


def test_a_build_that_is_not_there_ends_with_exit_code_1(tmp_path: Path, problems: Fail) -> None:
    lines = problems("run", "--config", config_file(tmp_path, tmp_path / "nowhere"), code=1)
    assert "no manifest.json there" in lines[-1]
    assert "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_a_plain_process_trains_and_leaves_config_metrics_and_boards(alone: Path) -> None:
    assert {path.name for path in alone.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "lock",
        "metrics.jsonl",
        "tensorboard",
    }
    resolved = yaml.safe_load((alone / "config.yaml").read_text())
    assert resolved["batch"]["packed"] is True
    entry = journal(alone)[-1]
    expected = {"loss", "lr", "grad_norm", "tokens_per_second", "trained_tokens_per_second", "images_per_second"}
    expected |= {
        "records_per_second",
        "padding_share",
        "mfu",
        "data_wait_share",
        "memory_bytes",
        "epoch",
        "seconds_per_step",
    }
    assert expected <= set(entry)
    assert entry["memory_bytes"] > 1 << 20
    assert list((alone / "tensorboard").iterdir())


@pytest.mark.slow
def test_num_gpus_goes_through_deepspeeds_launcher_and_trains_the_same(alone: Path, launched: Launched) -> None:
    assert launched.stdout == ""
    assert losses(launched.out)[:4] == pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.slow
def test_a_signal_to_the_launching_process_saves_on_all_ranks(launched: Launched) -> None:
    assert launched.code == 0, launched.stderr
    steps = len(losses(launched.out))
    (checkpoint,) = (launched.out / "checkpoints").glob("step-*")
    assert checkpoint.name == f"step-{steps:08d}"
    assert json.loads((checkpoint / "checkpoint.json").read_text())["step"] == steps
    assert not (launched.out / "stop").exists()


@pytest.mark.slow
def test_torchrun_starts_it_as_well(build: Path, alone: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, build, schedule={"steps": 4, **SAME})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run("run", "--config", config, command=[*torchrun, "-m", "trainer.cli"])
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "out") == pytest.approx(losses(alone), rel=1e-6)
