"""The package of examples/extensions, from its records to an answer: by module and name, and installed by pip."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("deepspeed")

import preprocess.cli
import trainer.cli
from tests.support import extensions, train_runs
from tests.support.extensions import EXAMPLE, forget
from tests.support.manifests import manifest_document
from tests.support.paths import ROOT

PACKAGE = "photo_extensions"
NAMES = {
    "adapter": f"{PACKAGE}.described_photos:ADAPTER",
    "encoder": f"{PACKAGE}.convolutions:ENCODER",
    "projector": f"{PACKAGE}.pooling:PROJECTOR",
}
INSTALLED = {"adapter": "described_photos", "encoder": "convolutions", "projector": "pooling"}
MODEL_PARTS = ("encoder", "projector")


def prep(*arguments: str | Path) -> str:
    """`dsvl-prep` in this process."""
    done = CliRunner().invoke(preprocess.cli.cli, list(map(str, arguments)))
    assert done.exit_code == 0, (done.stderr, done.exception)
    return done.stdout


def train(folder: Path, *arguments: str | Path) -> str:
    """`dsvl-train` in a process of its own: what it printed."""
    done = train_runs.Ranks(arguments, ranks=1, log=folder / f"log-{arguments[0]}").wait()
    assert done.codes == [0], done.output
    return done.output


def chat(monkeypatch: pytest.MonkeyPatch, model: Path, photo: Path, *options: str) -> str:
    """`dsvl-train chat` in this process: its answers to one question about a photo."""
    arguments = ["--model", str(model), "--max-new-tokens", "4", "--temperature", "1", *options]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["dsvl-train", "chat", *arguments])
        patch.setattr(sys, "stdin", io.StringIO(f"/image {photo}\nWhat is it?\n"))
        patch.setattr(sys, "stdout", out := io.StringIO())
        code: object = 0
        try:
            trainer.cli.main()
        except SystemExit as end:
            code = end.code
    assert not code, out.getvalue()
    return out.getvalue()


def run(folder: Path, names: dict[str, str], *settings: str) -> str:
    """`dsvl-train run` with the example's file and these names; returns what it printed."""
    kinds = [f"model.{part}.kind={names[part]}" for part in MODEL_PARTS]
    places = [f"build={folder / 'build'}", f"out={folder / 'run'}"]
    options = [f"--set={setting}" for setting in (*places, *kinds, *settings)]
    return train(folder, "run", "--config", EXAMPLE / "train.yaml", *options)


def whole_path(folder: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], *consent: str) -> None:
    """Build, verify, train, export and chat with the example's files under these names."""
    blend = yaml.safe_load((EXAMPLE / "blend.yaml").read_text())
    config = yaml.safe_load((EXAMPLE / "train.yaml").read_text())
    assert blend["datasets"][0]["adapter"] == NAMES["adapter"]
    assert {part: config["model"][part]["kind"] for part in MODEL_PARTS} == {part: NAMES[part] for part in MODEL_PARTS}
    adapter = ["--set", f"datasets.photos.adapter={names['adapter']}"]
    prep("build", "--blend", EXAMPLE / "blend.yaml", "--out", folder / "build", "--workers", "1", *adapter)
    assert "sound; 1 shards, 6 samples, 6 images" in prep("verify", "--build", folder / "build")
    assert "note:" not in run(folder, names)
    assert len(train_runs.losses(folder / "run")) == 2
    train(folder, "export", "--model", folder / "run", "--out", folder / "exported", *consent)
    answers = chat(monkeypatch, folder / "exported", ROOT / "examples/data/coco/train2017/000000000101.jpg", *consent)
    assert answers.strip()


def recorded(folder: Path) -> dict[str, dict[str, str]]:
    """What manifest, checkpoint and export say of the code; the last two say the same."""
    of_build = manifest_document(folder / "build")["datasets"]["photos"]["extension"]
    checkpoint = json.loads((folder / "run/checkpoints/step-00000002/checkpoint.json").read_text())
    export = json.loads((folder / "exported/dsvl.json").read_text())
    assert export["build"]["datasets"]["photos"]["extension"] == of_build
    assert export["extensions"] == checkpoint["extensions"]
    return {"adapter": of_build, **export["extensions"]}


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package is installed in a folder of sys.path, by pip."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "package")
    site = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    forget(PACKAGE)
    yield from extensions.on_path(monkeypatch, site)


@pytest.mark.slow
@pytest.mark.usefixtures("example_package")
def test_the_example_goes_from_records_to_an_answer_by_the_names_of_its_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consent = [f"--allow-extension={NAMES[part]}" for part in MODEL_PARTS]
    whole_path(tmp_path, monkeypatch, NAMES, *consent)
    actual = recorded(tmp_path)
    assert {part: entry["name"] for part, entry in actual.items()} == NAMES
    assert [entry["distribution"] for entry in actual.values()] == [None, None, None]


@pytest.mark.slow
def test_the_installed_example_goes_from_records_to_an_answer_by_its_entry_points(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "(photo-extensions 1.0)" in prep("adapters", "described_photos")
    whole_path(tmp_path, monkeypatch, INSTALLED)
    actual = recorded(tmp_path)
    assert {part: entry["name"] for part, entry in actual.items()} == INSTALLED
    assert {(entry["distribution"], entry["version"]) for entry in actual.values()} == {("photo-extensions", "1.0")}
    assert len({entry["sha256"] for entry in actual.values()}) == 1
    (metadata,) = installed.glob("photo_extensions-*.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    printed = run(tmp_path, INSTALLED, "schedule.steps=3")
    for part in MODEL_PARTS:
        line = (
            f"note: model.{part}.kind: {INSTALLED[part]}: recorded photo-extensions 1.0, installed photo-extensions 1.1"
        )
        assert printed.count(line) == 1
    checkpoint = json.loads((tmp_path / "run/checkpoints/step-00000003/checkpoint.json").read_text())
    assert {entry["version"] for entry in checkpoint["extensions"].values()} == {"1.1"}
