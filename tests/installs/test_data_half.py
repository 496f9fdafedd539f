"""`pip install dsvl` does what README says of it, and a command or function that needs more names the extra."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.clean_installs import Venvs, succeed


@pytest.mark.slow
def test_the_data_half_alone_runs_every_command_of_dsvl_prep(venvs: Venvs, user_folder: Path) -> None:
    def prep(*arguments: str) -> str:
        return succeed(venvs().run("dsvl-prep", *arguments, cwd=user_folder))

    assert "sparkles_dialogue" in prep("adapters")
    assert "found llava in examples/data" in prep("init", "--root", "examples/data", "--out", "blend.yaml")
    assert len(yaml.safe_load((user_folder / "blend.yaml").read_text(encoding="utf-8"))["datasets"]) > 10
    assert "000000000101.jpg" in prep("render", "--adapter", "llava", "--root", "examples/data")
    assert "tasks: 63 built" in prep("build", "--blend", "examples/blend.yaml", "--out", "build", "--workers", "1")
    assert "build: sound; 23 shards" in prep("verify", "--build", "build")
    assert "sequences of 4,096 tokens" in prep("stats", "--build", "build", "--max-length", "4096")
    assert "44 trained" in prep("inspect", "--build", "build", "--dataset", "llava")


def test_the_data_half_alone_reads_samples(venvs: Venvs, built: Path, tmp_path: Path) -> None:
    code = "import shards, sys; print(len(shards.open(sys.argv[1])['train'][0].ids), 'torch' in sys.modules)"
    num_ids, has_torch = succeed(venvs().run("python", "-c", code, built, cwd=tmp_path)).split()
    assert int(num_ids) > 20
    assert has_torch == "False"


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("dsvl-train run --config examples/train.yaml --set build={built}", "train"),
        (
            "dsvl-train run --config examples/train.yaml --num-gpus 2 --set build={built} "
            "--set batch.global_batch_size=4",
            "train",
        ),
        ("dsvl-train export --model run --out exported", "train"),
        ("dsvl-train chat --model exported", "train"),
        ("dsvl-train eval --model run", "train"),
        ("dsvl-prep build --blend small.yaml --out build --set engine=ray", "ray"),
        ("dsvl-prep build --blend small.yaml --out s3://bucket/build", "remote"),
        ("dsvl-prep verify --build s3://bucket/build", "remote"),
        ("dsvl-prep stats --build gs://bucket/build", "remote"),
        ("dsvl-prep inspect --build https://example.org/build", "remote"),
        ("dsvl-prep view {built}", "view"),
        ("dsvl-prep stats {built} --html report.html", "view"),
    ],
)
def test_without_an_extra_a_command_names_it(
    venvs: Venvs, built: Path, user_folder: Path, command: str, extra: str
) -> None:
    done = venvs().run(*command.format(built=built).split(), cwd=user_folder)
    assert done.returncode == 2
    assert f"pip install 'dsvl[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import shards.loader", "train"),
        ("import shards; shards.open('s3://bucket/build')", "remote"),
        ("from trainer.evaluation.captions import caption_scores; caption_scores(['a'], [['a']])", "eval"),
    ],
)
def test_without_an_extra_a_function_names_it(venvs: Venvs, tmp_path: Path, code: str, extra: str) -> None:
    done = venvs().run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert f"pip install 'dsvl[{extra}]'" in done.stderr.splitlines()[-1]
