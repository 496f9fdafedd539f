"""`trainer.load` names what is missing, cut, edited or damaged in an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import trainer
from dst.errors import ConfigError
from tests.support import exports, model_batches
from tests.support.sealed_records import edit_record, without_digests
from trainer.errors import TrainError

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(exports.small_build)
exported = pytest.fixture(scope="module")(exports.small_export)
copy = pytest.fixture(exports.copied)


def test_a_folder_without_an_export_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no dsvl\.json; make one with dsvl-train export"):
        trainer.load(tmp_path)


@pytest.mark.parametrize(("version", "words"), [(2, "newer.*update dsvl"), (0, "older.*export"), ("1", "older")])
def test_another_version_is_refused(version: object, words: str, copy: Path) -> None:
    change_record(copy, version=version)
    with pytest.raises(ConfigError, match=words):
        trainer.load(copy)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "chat_template.jinja", "model-00002-of-00005.safetensors", "model.safetensors.index.json"],
)
def test_a_missing_or_cut_file_is_named(name: str, copy: Path) -> None:
    content = (copy / name).read_bytes()
    for damage in (content[:-1], content + b" "):
        (copy / name).write_bytes(damage)
        with pytest.raises(TrainError, match=f"{name}: has .* bytes, expected"):
            trainer.load(copy)
    (copy / name).unlink()
    with pytest.raises(TrainError, match=f"{name}: is missing"):
        trainer.load(copy)


def test_an_edited_template_is_refused(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("Question", "question"))
    with pytest.raises(TrainError, match=r"chat_template\.jinja: is damaged or edited: its xxh3_128 .*copy it again"):
        trainer.load(copy)


@pytest.mark.parametrize("name", ["model-00001-of-00005.safetensors", "model.safetensors.index.json"])
def test_a_damaged_header_of_weights_is_reported(name: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    content[:40] = b"\xff" * 40
    (copy / name).write_bytes(content)
    with pytest.raises(TrainError, match=f"{name}: is damaged"):
        trainer.load(copy)


def test_an_index_cannot_point_out_of_the_folder(copy: Path) -> None:
    index = copy / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    name = min(tree["weight_map"])
    tree["weight_map"][name] = "../other.safetensors"
    index.write_text(json.dumps(tree))
    without_digests(copy / "dsvl.json")
    change_record(copy, forget=index.name)
    with pytest.raises(TrainError, match=r"names '\.\./other\.safetensors'"):
        trainer.load(copy)
    del tree["weight_map"][name]
    index.write_text(json.dumps(tree))
    with pytest.raises(TrainError, match=f"lack {name}"):
        trainer.load(copy)
    index.write_text("[" * 100_000)
    with pytest.raises(TrainError, match=r"index\.json: is damaged \(RecursionError"):
        trainer.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"encoder": {"kind": "telescope"}, "decoder": {"preset": "tiny_llama"}}},
        {"model": None},
        {"build": {"hash": "x"}},
        {"build": []},
        {"precision": "fp8"},
        {"files": {"../notes": {"size": 1}}},
        {"files": 3},
        {"format": "other"},
        {"form": "ours"},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_a_record_that_was_edited_is_reported_without_a_traceback(change: dict[str, Any], copy: Path) -> None:
    change_record(copy, **change)
    with pytest.raises(TrainError, match=r"dsvl\.json: cannot be used"):
        trainer.load(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    edit_record(copy / "dsvl.json", lambda record: record["model"]["decoder"]["config"].update(intermediate_size=64))
    with pytest.raises(TrainError, match=r"is \[128, 64\], expected \[64, 64\]"):
        trainer.load(copy)


def change_record(folder: Path, *, forget: str = "", **change: Any) -> None:
    def edit(record: dict[str, Any]) -> None:
        record["files"].pop(forget, None)
        record.update(change)

    edit_record(folder / "dsvl.json", edit)
