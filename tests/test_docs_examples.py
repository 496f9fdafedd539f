"""The worked examples of the docs, run as they stand: configurations on small data, code on the sample data."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import dst
import preprocess.cli
import shards
import shards.loader
import trainer
from tests.support import extensions, small_blends, train_runs
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
SMALL_BUILD = ("image_tokens=4", "image.size=32", "limits.max_length=192")
SMALL_MODEL = (
    "model.encoder={kind: tiny, config: {image_size: 32, patch_size: 16}}",
    "model.decoder={preset: tiny_llama}",
)
SMALL_RUN = (
    "precision=fp32",
    "batch.global_batch_size=4",
    "batch.micro_batch_size=2",
    "batch.workers=0",
    "schedule={steps: 3}",
)


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The code of a page's blocks of this language, without those that have a title."""
    return re.findall(rf"^```{language}\n(.*?)^```", page(name), re.DOTALL | re.MULTILINE)


@pytest.fixture
def quickstart(tmp_path: Path) -> Iterator[Path]:
    """A folder with the files of the quickstart, and data in the layout that the page shows."""
    for block in blocks("quickstart.md", "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block)
        assert name is not None
        (tmp_path / name[1]).write_text(block, encoding="utf-8")
    data = tmp_path / "data"
    shutil.copytree(ROOT / "examples/tokenizer", tmp_path / "vicuna-7b-v1.5")
    (data / "LLaVA-Pretrain").mkdir(parents=True)
    captions = []
    with zipfile.ZipFile(data / "LLaVA-Pretrain/images.zip", "w") as archive:
        for number in range(12):
            image = f"{number:05}/{number:09}.jpg"
            archive.writestr(image, small_blends.jpeg(number))
            turns = [("human", "<image>\nDescribe the image."), ("gpt", f"caption {number}")]
            captions.append({"id": f"{number:09}", "image": image, "conversations": sharegpt(turns)})
    (data / "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json").write_text(json.dumps(captions))
    mixed: list[dict[str, Any]] = [{"id": "text", "conversations": sharegpt([("human", "Hello"), ("gpt", "Hi.")])}]
    layout = re.findall(r"data/((?:\w+/)+)", page("quickstart.md").split("```text")[1].split("```")[0])
    folders = [folder for folder in layout if folder.count("/") == 2]
    assert len(folders) == 6
    for folder in folders:
        (data / folder).mkdir(parents=True)
        for number in range(4):
            image = f"{folder}{number}.jpg"
            (data / image).write_bytes(small_blends.jpeg(hash(image) % 1000))
            turns = [("human", "<image>\nWhat is it?"), ("gpt", image), ("human", "And now?"), ("gpt", "The same.")]
            mixed.append({"id": f"{number}", "image": image, "conversations": sharegpt(turns)})
    (data / "llava_v1_5_mix665k.json").write_text(json.dumps(mixed))
    with contextlib.chdir(tmp_path):
        yield tmp_path


def sharegpt(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


def changing(*settings: str) -> list[str]:
    return [f"--set={setting}" for setting in settings]


def dsvl_train(folder: Path, *arguments: str) -> None:
    done = train_runs.Ranks(arguments, ranks=1, log=folder / f"log-{arguments[0]}-{arguments[2]}").wait()
    assert done.codes == [0], done.output


@pytest.mark.slow
@pytest.mark.usefixtures("builds_in_this_process")
def test_the_first_example_of_the_readme_runs_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
    lines = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("dsvl-")]
    assert [words[:2] for words in lines] == [
        *(["dsvl-prep", command] for command in ("build", "verify", "inspect")),
        *(["dsvl-train", command] for command in ("run", "eval", "export", "chat")),
    ]
    for program, *arguments in lines[:-1]:
        if program == "dsvl-prep":
            result = CliRunner().invoke(preprocess.cli.cli, arguments)
            assert result.exit_code == 0, result.output
        else:
            dsvl_train(tmp_path, *arguments)
    assert (tmp_path / "build/report/results.html").is_file()
    assert lines[-1][-2] == "<"
    shell = shlex.join([sys.executable, "-m", "trainer.cli", *lines[-1][1:-2]]) + f" < {lines[-1][-1]}"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_quickstart_trains_both_stages_on_small_data(quickstart: Path) -> None:
    report = small_blends.build(quickstart / "pretrain-blend.yaml", out=None, settings=SMALL_BUILD)
    assert report.path == quickstart / "build/pretrain"
    assert report.to_json()["datasets"]["pretrain"]["samples"] == 12
    dsvl_train(quickstart, "run", "--config", "pretrain.yaml", *changing(*SMALL_MODEL, *SMALL_RUN))
    dsvl_train(quickstart, "export", "--model", "runs/pretrain", "--out", "exported/pretrain")
    settings = (*SMALL_BUILD, "split.eval=0.2")
    report = small_blends.build(quickstart / "finetune-blend.yaml", out=None, settings=settings)
    counts = report.to_json()["datasets"]["mix665k"]
    assert (counts["samples"], counts["rejects"]) == (25, {})
    dsvl_train(quickstart, "run", "--config", "finetune.yaml", *changing(*SMALL_RUN, "evaluation.every=2"))
    dsvl_train(quickstart, "export", "--model", "runs/finetune", "--out", "exported/llava-1.5-7b")
    assert trainer.load("exported/llava-1.5-7b").step == 3
    trained = {entry["kind"] for entry in train_runs.journal(quickstart / "runs/finetune")}
    assert {"train", "eval"} <= trained


@pytest.mark.parametrize(
    ("guide", "module"),
    [
        ("add-an-adapter.md", "described_photos"),
        ("add-an-encoder.md", "convolutions"),
        ("extending.md", "pooling"),
    ],
)
def test_the_code_of_a_guide_is_that_of_the_example_package(guide: str, module: str) -> None:
    path = extensions.EXAMPLE / f"photo_extensions/{module}.py"
    assert blocks(guide, "python")[0] == path.read_text(encoding="utf-8")
    assert f"{module}.py" in page("extending.md")


def test_the_entry_points_of_the_guide_are_those_of_the_example_package() -> None:
    project = tomllib.loads((extensions.EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shown = tomllib.loads(blocks("extending.md", "toml")[0])["project"]
    assert shown == {"entry-points": project["entry-points"]}


@pytest.mark.usefixtures("example_package", "builds_in_this_process")
@pytest.mark.parametrize("guide", ["add-an-adapter.md", "extending.md"])
def test_the_data_commands_of_a_guide_work_as_they_stand(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(guide, "bash") for line in block.splitlines() if line.startswith("dsvl-prep ")]
    assert len(lines) >= 2
    for line in lines:
        done = CliRunner().invoke(preprocess.cli.cli, shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.stderr, done.exception)
        assert done.stdout


def test_the_template_of_the_guide_prints_what_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "phi.jinja").write_text(blocks("add-a-template.md", "jinja")[0].removesuffix("\n"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(blocks("add-a-template.md", "python")[0], {})
    assert capsys.readouterr().out == blocks("add-a-template.md", "text")[-1]


@pytest.mark.slow
def test_the_examples_of_the_python_page_run_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    small_blends.build(ROOT / "examples/blend.yaml", out=Path("build/demo"))
    settings = ("--set", "schedule={steps: 2}", "--set", "evaluation.every=0")
    dsvl_train(tmp_path, "run", "--config", "examples/train.yaml", *settings)
    dsvl_train(tmp_path, "export", "--model", "build/run", "--out", "build/exported")
    code = blocks("python-api.md", "python")
    assert len(code) == 4
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in code:
            exec(block, names)
    assert printed.getvalue().startswith("2 ")
    assert len(names["first"]) == 4
    assert names["pixels"].is_floating_point()


@pytest.mark.parametrize("module", [dst, shards, shards.loader, trainer], ids=lambda module: str(module.__name__))
def test_every_public_name_is_in_the_table_of_the_python_page(module: ModuleType) -> None:
    section = page("python-api.md").split(f"## {module.__name__}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    errors = {name for name in module.__all__ if name.endswith("Error")}
    assert listed == set(module.__all__) - errors
    assert errors - {"DsvlError"} <= set(re.findall(r"^## (\w+)$", page("errors.md"), re.MULTILINE))
