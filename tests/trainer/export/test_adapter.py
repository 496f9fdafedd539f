"""Adapters for peft: loaded by peft onto the LLaVA that a run began with, they give the logits of the trained model."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
peft: Any = pytest.importorskip("peft")

import torch
from click.testing import CliRunner

from dst.errors import ConfigError
from shards import Build
from tests.support import exports, llava_folders, model_batches
from tests.support.sealed_records import edit_record
from trainer.checkpoint.init_from import start_facts, with_start
from trainer.cli import cli
from trainer.config.run import TrainConfig, config_from, to_tree
from trainer.errors import TrainError
from trainer.export.adapter import WEIGHTS, export_adapter
from trainer.export.export import export, export_model
from trainer.model.vision_chat import VisionChatModel
from trainer.verify import verify_folder

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's use

TIED = {**llava_folders.LLAMA, "tie_word_embeddings": True}
LORA: dict[str, Any] = {"decoder": {"rank": 2, "target_modules": ["q_proj", "down_proj"]}}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return exports.make_build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def published(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA folder of transformers."""
    folder = tmp_path_factory.mktemp("published") / "llava"
    llava_folders.write_llava(folder, build)
    return folder


def run_of(folder: Path, build: Build, start: Path, **settings: Any) -> tuple[VisionChatModel, TrainConfig]:
    """A run that began with a folder: its model, all trained weights moved, and a checkpoint in `folder`."""
    tree = {
        "build": build.store.location,
        "out": "out",
        "precision": "fp32",
        "model": {"init_from": str(start)},
        "learning_rates": {"projector": 1e-3},
        "lora": LORA,
        **settings,
    }
    config = config_from(with_start(tree, "train.yaml"), "train.yaml")
    model = exports.make_model(config, build)
    path = exports.write_checkpoint(folder, model, config, build) / "checkpoint.json"
    edit_record(path, lambda content: content.update(init_from=start_facts(str(start))))
    return model, config


def logits_by_transformers(model: Any, ours: VisionChatModel, build: Build) -> torch.Tensor:
    """Of the question with its two images."""
    ids = exports.expanded(ours, exports.chat_of(build))
    pixels = exports.pixels_of(exports.sample_images(), build).double() / 255
    mean, std = (
        torch.tensor(list(each), dtype=torch.float64).view(3, 1, 1) for each in (ours.encoder.mean, ours.encoder.std)
    )
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, pixel_values=(pixels - mean) / std).logits
    return logits


def check_adapter(start: Path, folder: Path, trained: VisionChatModel, build: Build) -> None:
    """peft's own loading gives the logits of the trained model, with and without merging."""
    transformers: Any = importlib.import_module("transformers")
    base = transformers.LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32).double()
    trained.double()
    before = logits_by_transformers(base, trained, build)
    ids = exports.expanded(trained, exports.chat_of(build))
    expected = exports.logits_of(trained, ids, exports.pixels_of(exports.sample_images(), build))
    assert (expected - before).abs().max() > 1e-2
    model = peft.PeftModel.from_pretrained(base, folder).double().eval()
    assert_same(logits_by_transformers(model, trained, build), expected)
    assert_same(logits_by_transformers(model.merge_and_unload(), trained, build), expected)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest logit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max().clamp(min=1)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": {"decoder": {"rank": 4, "rslora": True, "alpha": 3.5}}},
        {"lora": {"decoder": {"rank": 2, "dora": True}}, "learning_rates": {"projector": None}},
        {
            "lora": {
                "decoder": {"rank": 2, "alpha": 2, "rslora": True, "modules_to_save": ["lm_head", "layers.1.mlp"]},
                "encoder": {"rank": 3, "alpha": 5, "target_modules": ["q_proj", "fc1"]},
            }
        },
        {"learning_rates": {"projector": 1e-3, "encoder": 1e-3, "embeddings": 1e-3}},
    ],
    ids=["plain", "rslora", "dora", "saved, encoder", "encoder in full, embeddings"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_peft_loads_an_adapter_onto_the_llava_that_the_run_began_with(
    settings: dict[str, Any], tied: bool, build: Build, published: Path, tmp_path: Path
) -> None:
    start = published
    if tied:
        start = tmp_path / "llava"
        llava_folders.write_llava(
            start,
            build,
            text=TIED,
            tie_word_embeddings=True,
            vision=exports.SIGLIP,
            vision_feature_select_strategy="full",
        )
    model, _ = run_of(tmp_path / "run", build, start, **settings)

    exported = export_adapter(tmp_path / "run", tmp_path / "adapter")

    assert exported.base == str(start)
    check_adapter(start, tmp_path / "adapter", model, build)
    whole = export(tmp_path / "run", tmp_path / "whole")
    assert whole.form == "llava"
    actual = logits_by_transformers(exports.llava(tmp_path / "whole").double(), model, build)
    ids = exports.expanded(model, exports.chat_of(build))
    expected = exports.logits_of(model, ids, exports.pixels_of(exports.sample_images(), build))
    assert_same(actual, expected)


def test_an_adapter_fits_an_export_of_this_project_too(build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build, encoder={"kind": "open_clip", "config": exports.OPEN_CLIP})
    export_model(exports.make_model(config, build), config, build, tmp_path / "first", step=5)
    model, _ = run_of(tmp_path / "run", build, tmp_path / "first")
    export_adapter(tmp_path / "run", tmp_path / "adapter")
    check_adapter(tmp_path / "first", tmp_path / "adapter", model, build)


def test_the_files_are_those_of_peft_and_say_what_they_are_for(build: Build, published: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "run", build, published)
    arguments = ["export", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "adapter"), "--adapter"]
    done = CliRunner().invoke(cli, [*arguments, "--precision", "bf16"])
    assert done.exit_code == 0, done.output
    assert f"an adapter for {published}" in done.output
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "chat_template.jinja"} <= names
    content = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (content["peft_type"], content["r"], content["lora_alpha"]) == ("LORA", 2, 32.0)
    assert content["modules_to_save"] == ["model.multi_modal_projector"]
    assert sorted(content["target_modules"])[0] == "model.language_model.layers.0.mlp.down_proj"
    tensors = exports.tensors_in(tmp_path / "adapter", "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight" in tensors
    card = (tmp_path / "adapter/README.md").read_text()
    assert "base_model: llava" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lora": {}}, "the run has no LoRA adapters"),
        ({"learning_rates": {"decoder": 1e-5}}, "learning_rates.decoder trained the whole decoder as well"),
        (
            {"lora": {**LORA, "encoder": {}}, "learning_rates": {"encoder": 1e-5}},
            "learning_rates.encoder trained the weights under the encoder's adapters as well",
        ),
        ({"lora": {"decoder": {"dora": True}, "encoder": {}}}, "only one of lora.decoder and lora.encoder has dora"),
        ({"attention": "mmca"}, "the trained model is not one: its text attends to text and to images separately"),
    ],
)
def test_what_no_adapter_can_hold_is_refused(
    settings: dict[str, Any], reason: str, build: Build, published: Path, tmp_path: Path
) -> None:
    if "attention" in settings:
        settings = {"model": {"init_from": str(published), **settings}}
    run_of(tmp_path / "run", build, published, **settings)
    with pytest.raises(ConfigError, match=rf"^--adapter: .*{re.escape(reason)}.*; export without --adapter$"):
        export_adapter(tmp_path / "run", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_run_of_separate_parts_has_no_llava_for_an_adapter(build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build, lora=LORA)
    exports.write_checkpoint(tmp_path / "run", exports.make_model(config, build), config, build)
    with pytest.raises(ConfigError, match=r"--adapter: .*began with an encoder and a decoder apart; export without"):
        export_adapter(tmp_path / "run", tmp_path / "adapter")


def test_tokens_that_the_build_added_are_refused(build: Build, published: Path, tmp_path: Path) -> None:
    _, config = run_of(tmp_path / "run", build, published)
    smaller = tmp_path / "smaller"
    llava_folders.write_llava(smaller, build, spare_rows=-3)
    path = tmp_path / "run/checkpoints/step-00000003/checkpoint.json"
    moved = replace(config, model=replace(config.model, init_from=str(smaller)))
    content = {"config": to_tree(moved), "init_from": start_facts(str(smaller))}
    edit_record(path, lambda tree: tree.update(content))
    with pytest.raises(ConfigError, match=r"--adapter: model.language_model.embed_tokens.weight is .* in the trained"):
        export_adapter(tmp_path / "run", tmp_path / "adapter")


def test_an_adapter_is_verified_by_its_digests(build: Build, published: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "run", build, published)
    adapter = tmp_path / "adapter"
    export_adapter(tmp_path / "run", adapter)
    assert verify_folder(adapter).problems == verify_folder(adapter).notes == []
    assert hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest() in (adapter / "README.md").read_text()
    for name in (WEIGHTS, "adapter_config.json", "tokenizer.json", "dsvl-adapter.json"):
        intact = (adapter / name).read_bytes()
        (adapter / name).write_bytes(intact[:-2] + bytes([intact[-2] ^ 1]) + intact[-1:])
        (problem,) = verify_folder(adapter).problems
        assert f"{adapter / name}: " in problem
        (adapter / name).write_bytes(intact)


def test_an_adapter_that_is_not_finite_is_refused(build: Build, published: Path, tmp_path: Path) -> None:
    model, config = run_of(tmp_path / "run", build, published)
    parameter = next(each for name, each in model.named_parameters() if ".lora_" in name)
    with torch.no_grad():
        parameter.view(-1)[0] = torch.nan
    shutil.rmtree(tmp_path / "run")
    exports.write_checkpoint(tmp_path / "run", model, config, build)
    with pytest.raises(TrainError, match=r"lora_.*: has NaN or infinite elements in float32"):
        export_adapter(tmp_path / "run", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
