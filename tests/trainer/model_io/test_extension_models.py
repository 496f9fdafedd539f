"""Models with parts of other packages: no folder runs code that its user did not name, and the code is recorded."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

import trainer
from dst.errors import ConfigError
from shards import Build
from tests.support import exports, extensions, model_batches, train_runs
from tests.support.extensions import EXAMPLE, forget, install
from tests.support.sealed_records import edit_record
from trainer import cli
from trainer.config.run import TrainConfig
from trainer.distributed import launch
from trainer.errors import TrainError
from trainer.export.export import export, export_model
from trainer.model.build_model import check_model
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.llava import refusals
from trainer.training.preflight import prepare

PACKAGE = "photo_extensions"
ENCODER, PROJECTOR = f"{PACKAGE}.convolutions:ENCODER", f"{PACKAGE}.pooling:PROJECTOR"
BOTH = (ENCODER, PROJECTOR)
SETTINGS: dict[str, dict[str, Any]] = {
    "encoder": {"kind": ENCODER, "config": {"image_size": exports.SIDE, "width": 16}},
    "projector": {"kind": PROJECTOR, "config": {"side": 2}},
}

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return exports.make_build(tmp_path_factory.mktemp("build"))


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package can be imported, and is not imported yet."""
    forget(PACKAGE)
    yield from extensions.on_path(monkeypatch, EXAMPLE)


def made(build: Build, **parts: Any) -> tuple[VisionChatModel, TrainConfig]:
    config = exports.config_of(build, attention="mmca", learning_rates=exports.ALL, **{**SETTINGS, **parts})
    return exports.make_model(config, build), config


@pytest.fixture
def exported(build: Build, tmp_path: Path) -> Path:
    """An export of a model whose encoder and projector are the example's; they are not imported any more."""
    model, config = made(build)
    export_model(model, config, build, tmp_path / "exported", step=3)
    forget(PACKAGE)
    return tmp_path / "exported"


@pytest.fixture
def run(build: Build, tmp_path: Path) -> Path:
    """The folder of a run with such a model, likewise."""
    model, config = made(build)
    exports.write_checkpoint(tmp_path / "run", model, config, build)
    forget(PACKAGE)
    return tmp_path / "run"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_record(path, change)


def problems(function: Callable[..., object], *arguments: Any, **options: Any) -> list[str]:
    """What is said of a model that names both extensions, none of which is imported."""
    with pytest.raises(ConfigError) as caught:
        function(*arguments, **options)
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]
    return caught.value.problems


def needs_consent(folder: Path, lines: list[str]) -> bool:
    return [line.partition(", and")[0] for line in lines] == [
        f"{folder}: its encoder is the extension {ENCODER}",
        f"{folder}: its projector is the extension {PROJECTOR}",
    ] and all(f"--allow-extension {name}" in line for name, line in zip(BOTH, lines, strict=True))


def test_an_export_is_opened_with_consent_alone_and_computes_the_same(build: Build, exported: Path) -> None:
    assert needs_consent(exported, problems(trainer.load, exported))
    assert needs_consent(exported, problems(trainer.load, exported, allow_extensions=["other:X"]))
    loaded = trainer.load(exported, allow_extensions=BOTH)
    assert loaded.notes == ()
    model, _ = made(build)
    ids = exports.expanded(model, loaded.chat_tokenizer)
    pixels = exports.pixels_of(exports.sample_images(), build)
    expected = exports.logits_of(model, ids, pixels)
    assert expected.abs().max() > 0.1
    assert torch.equal(exports.logits_of(loaded.model, ids, pixels), expected)


def test_an_export_records_the_code_and_its_card_says_how_to_open_it(exported: Path) -> None:
    record = json.loads((exported / "dsvl.json").read_text())
    assert {part: entry["name"] for part, entry in record["extensions"].items()} == {
        "encoder": ENCODER,
        "projector": PROJECTOR,
    }
    assert all(len(entry["sha256"]) == 64 for entry in record["extensions"].values())
    assert record["model"]["encoder"]["kind"] == ENCODER
    card = (exported / "README.md").read_text()
    assert f"allow_extensions={BOTH!r})" in card
    assert f"Its encoder needs `{ENCODER}`, whose source has the digest" in card


def test_other_code_is_a_note_and_a_damaged_record_an_error(exported: Path) -> None:
    record = exported / "dsvl.json"
    edit(record, lambda tree: tree["extensions"]["encoder"].update(sha256="1" * 64))
    (note,) = trainer.load(exported, allow_extensions=BOTH).notes
    assert note.startswith(f"model.encoder.kind: {ENCODER}: recorded code of no distribution (sha256 111111111111), ")
    edit(record, lambda tree: tree["extensions"]["encoder"].update(sha256=3))
    with pytest.raises(TrainError, match=r"dsvl\.json: cannot be used \(extensions\.encoder\.sha256: got 3; expected"):
        trainer.load(exported, allow_extensions=BOTH)


def test_a_module_that_is_gone_is_not_taken_for_a_damaged_export(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(EXAMPLE)])
    with pytest.raises(ConfigError) as caught:
        trainer.load(exported, allow_extensions=BOTH)
    assert caught.value.problems == [
        f"{exported}: model.encoder.kind: {ENCODER}: there is no module {PACKAGE}; install the package that has it, or "
        "add the folder that holds it to PYTHONPATH"
    ]


def test_the_name_of_an_entry_point_needs_no_consent_and_another_release_is_a_note(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE / PACKAGE, site / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    names = {"dsvl.encoders/convolutions": ENCODER, "dsvl.projectors/pooling": PROJECTOR}
    info = install(site, "photo-extensions", "1.0", entry_points=names, files={})
    monkeypatch.syspath_prepend(site)
    parts = {
        part: {**SETTINGS[part], "kind": kind} for part, kind in (("encoder", "convolutions"), ("projector", "pooling"))
    }
    model, config = made(build, **parts)
    out = tmp_path / "exported"
    export_model(model, config, build, out, step=3)
    assert "Its encoder needs `convolutions` of photo-extensions 1.0." in (out / "README.md").read_text()
    assert trainer.load(out).notes == ()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: photo-extensions\nVersion: 1.1\n")
    assert trainer.load(out).notes == (
        "model.encoder.kind: convolutions: recorded photo-extensions 1.0, installed photo-extensions 1.1",
        "model.projector.kind: pooling: recorded photo-extensions 1.0, installed photo-extensions 1.1",
    )
    shutil.rmtree(info)
    actual = [
        line
        for line in _load_problems(out)
        if line.endswith("the model was made with convolutions of photo-extensions 1.0")
    ]
    assert len(actual) == 1
    forget(PACKAGE)


def _load_problems(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        trainer.load(folder)
    return caught.value.problems


def test_a_run_is_exported_with_consent_alone_and_keeps_what_its_checkpoint_records(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/step-00000003"
    assert needs_consent(checkpoint, problems(export, run, tmp_path / "out"))
    edit(checkpoint / "checkpoint.json", lambda tree: tree["extensions"]["projector"].update(sha256="1" * 64))
    actual = export(run, tmp_path / "out", allow_extensions=BOTH)
    assert [line.partition(" recorded")[0] for line in actual.notes] == [f"model.projector.kind: {PROJECTOR}:"]
    assert json.loads((tmp_path / "out/dsvl.json").read_text())["extensions"]["projector"]["sha256"] == "1" * 64
    edit(checkpoint / "checkpoint.json", lambda tree: tree.update(extensions=3))
    with pytest.raises(ConfigError, match=r"checkpoint\.json: cannot be used \(extensions: got 3; expected an object"):
        export(run, tmp_path / "again", allow_extensions=BOTH)


def test_a_second_stage_needs_the_flag_or_the_names_in_its_own_file(
    build: Build, exported: Path, tmp_path: Path
) -> None:
    path = train_runs.config_file(tmp_path / "second", Path(build.store.location))
    tree = yaml.safe_load(path.read_text())

    def write(**model: Any) -> None:
        path.write_text(yaml.safe_dump({**tree, "model": {"init_from": str(exported), **model}}))

    write()
    lines = problems(prepare, path, (), 1, loads_model=False)
    start = f"train.yaml: model.init_from: {exported}: its"
    assert [line.startswith(start) for line in lines] == [True, True]
    config, _ = prepare(path, (), 1, loads_model=True, allow_extensions=BOTH)
    assert (config.model.encoder.kind, config.model.projector.kind) == BOTH
    write(encoder={"kind": ENCODER}, projector={"kind": PROJECTOR})
    assert prepare(path, (), 1, loads_model=False)[0].model == config.model
    forget(PACKAGE)
    write(encoder={"kind": ENCODER})
    assert len(problems(prepare, path, (), 1, loads_model=False)) == 1


def test_the_flag_reaches_every_rank_that_is_launched(
    exported: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = train_runs.config_file(tmp_path / "second", Path(build.store.location))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "model": {"init_from": str(exported)}}))
    launched: list[Sequence[str]] = []
    monkeypatch.setattr(launch, "launch", lambda layout, arguments, out: launched.append(arguments))
    flags = [f"--allow-extension={name}" for name in BOTH]
    arguments = ["run", "--config", str(path), "--num-gpus", "2"]
    assert CliRunner().invoke(cli.cli, arguments).exit_code != 0
    assert CliRunner().invoke(cli.cli, [*arguments, *flags]).exit_code == 0
    assert launched == [["run", "--config", str(path), *flags]]


def test_a_causal_model_with_an_encoder_of_another_package_is_not_a_llava(build: Build) -> None:
    facts = replace(build.manifest.facts(), image_tokens=16)
    config = exports.config_of(build, encoder=SETTINGS["encoder"])
    assert check_model(config.model, facts) == []
    model = exports.make_model(config, build)
    assert refusals(model, config.model) == [
        f"its encoder is {ENCODER}, LLaVA's is CLIP or SigLIP (encoder.kind: hf or open_clip)"
    ]


@pytest.mark.parametrize("command", ["chat", "eval"])
def test_commands_say_which_flag_they_need_and_note_other_code(
    command: str,
    exported: Path,
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {
        "chat": ("--max-new-tokens", "2"),
        "eval": ("--build", build.store.location, "--no-answers", "--workers", "0"),
    }[command]

    def call(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dsvl-train", command, "--model", str(exported), *options, *more])
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\n"))
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, capsys.readouterr().err

    code, text = call("--allow-extension", ENCODER)
    assert code == 2
    assert text.count("error: ") == 1
    assert f"add --allow-extension {PROJECTOR}" in text
    edit(exported / "dsvl.json", lambda tree: tree["extensions"]["encoder"].update(sha256="1" * 64))
    code, text = call("--allow-extension", ENCODER, "--allow-extension", PROJECTOR)
    assert f"note: model.encoder.kind: {ENCODER}: recorded" in text
    assert code == 0 or command == "eval"
