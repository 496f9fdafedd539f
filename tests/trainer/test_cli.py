"""The command `dsvl-train`: what it loads, its settings, exit codes, and errors without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import trainer_processes
from tests.support.heavy_packages import HEAVY
from tests.support.train_runs import config_file
from tests.support.trainer_processes import run
from trainer import cli

build = pytest.fixture(scope="module")(trainer_processes.make_build)


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
