"""`trainer.load` opens what was exported: the same logits, and the build's tokenizer and geometry."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch

import trainer
from shards import Build
from tests.support import exports, model_batches
from tests.support.exports import CLIP, OPEN_CLIP, SIDE, SIGLIP
from trainer.export.export import export, export_model
from trainer.model.decoder import PRESETS
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.load import Loaded

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(exports.small_build)


@dataclass(frozen=True, slots=True)
class Pair:
    """A model and what came back of its export."""

    before: VisionChatModel
    after: Loaded
    build: Build

    def difference(self) -> float:
        """Largest, of logits of a question about two images."""
        assert self.after.chat_tokenizer.template.source == self.build.manifest.template
        ids = exports.expanded(self.before, self.after.chat_tokenizer)
        pixels = exports.pixels_of(exports.sample_images(), self.build)
        expected = exports.logits_of(self.before, ids, pixels)
        assert expected.abs().max() > 0.1
        return float((exports.logits_of(self.after.model, ids, pixels) - expected).abs().max())


MakePair = Callable[..., Pair]


@pytest.fixture
def pair_of(build: Build, tmp_path: Path) -> MakePair:
    """Export and load a model with these parts."""

    def pair(**model: Any) -> Pair:
        config = exports.config_of(build, learning_rates=exports.ALL, **model)
        made = exports.make_model(config, build)
        export_model(made, config, build, tmp_path / "out", step=7)
        return Pair(made, trainer.load(tmp_path / "out"), build)

    return pair


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_an_mmca_model_comes_back_with_the_same_logits(preset: str, pair_of: MakePair) -> None:
    pair = pair_of(attention="mmca", decoder={"preset": preset})
    assert pair.after.model.attention == "mmca"
    assert pair.difference() == 0


@pytest.mark.parametrize(
    "model",
    [
        {"encoder": {"kind": "tiny", "config": {"image_size": SIDE, "patch_size": 16}}},
        {"encoder": {"kind": "open_clip", "config": OPEN_CLIP}},
        {"encoder": {"kind": "hf", "config": {**CLIP, "model_type": "dinov2"}}},
        {"encoder": {"kind": "hf", "config": {**SIGLIP, "image_size": 64}, "image_size": SIDE}},
        {
            "encoder": {
                "kind": "qwen_vl",
                "config": {
                    "image_size": SIDE,
                    "width": 16,
                    "layers": 1,
                    "heads": 2,
                    "patch_size": 8,
                    "output_dim": 16,
                    "n_queries": 4,
                    "head_width": 8,
                    "positions": 16,
                },
            }
        },
        {"projector": {"kind": "perceiver", "num_queries": 4, "num_heads": 4}},
        {"projector": {"kind": "pixel_shuffle"}, "encoder": {"kind": "hf", "config": {**CLIP, "patch_size": 8}}},
        {"projector": {"kind": "vit", "num_heads": 4}},
        {"projector": {"kind": "linear"}},
    ],
    ids=[
        "tiny",
        "open_clip",
        "dinov2",
        "SigLIP at another size",
        "qwen_vl",
        "perceiver",
        "pixel_shuffle",
        "vit",
        "linear",
    ],
)
def test_every_encoder_and_projector_comes_back(model: dict[str, Any], pair_of: MakePair) -> None:
    assert pair_of(**{"attention": "mmca", **model}).difference() < 1e-5


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"decoder": {"preset": "tiny_qwen2"}},
        {"encoder": {"kind": "hf", "config": CLIP, "layer": 1}},
        {"encoder": {"kind": "hf", "config": SIGLIP}},
        {"encoder": {"kind": "open_clip", "config": OPEN_CLIP}},
    ],
    ids=["untied", "tied", "first layer", "SigLIP", "open_clip"],
)
def test_a_llava_folder_comes_back_as_our_model(model: dict[str, Any], pair_of: MakePair) -> None:
    pair = pair_of(**model)
    assert pair.after.model.attention == "causal"
    assert pair.difference() < 1e-5


def test_an_export_needs_nothing_of_where_its_parts_came_from(build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build)
    made = exports.make_model(config, build)
    decoder: Any = made.decoder
    decoder.save_pretrained(tmp_path / "parts/decoder")
    made.encoder.tower.model.save_pretrained(tmp_path / "parts/encoder")
    parts: dict[str, Any] = {
        "encoder": {"kind": "hf", "name": str(tmp_path / "parts/encoder"), "layer": -1},
        "decoder": {"name": str(tmp_path / "parts/decoder")},
    }
    for attention in ("mmca", "causal"):
        config = exports.config_of(build, attention=attention, **parts)
        model = exports.make_model(config, build)
        export_model(model, config, build, tmp_path / attention, step=1)
    shutil.rmtree(tmp_path / "parts")
    for attention in ("mmca", "causal"):
        record = json.loads((tmp_path / attention / "dsvl.json").read_text())
        assert str(tmp_path) not in json.dumps(record["model"])
        assert str(tmp_path) not in (tmp_path / attention / "config.json").read_text()
        assert trainer.load(tmp_path / attention).model.attention == attention


def test_what_was_loaded_can_be_exported_again(pair_of: MakePair, build: Build, tmp_path: Path) -> None:
    pair = pair_of()
    config = exports.config_of(build, learning_rates=exports.ALL)

    export_model(pair.after.model, config, build, tmp_path / "again", step=7)

    for name in ("model.safetensors", "config.json", "dsvl.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_a_checkpoints_export_answers_as_the_model_with_adapters(build: Build, tmp_path: Path) -> None:
    lora = {"decoder": {"rank": 2}, "encoder": {"rank": 2, "target_modules": ["q_proj"]}}
    config = exports.config_of(
        build, attention="mmca", learning_rates={"projector": 1e-3, "embeddings": 1e-3}, lora=lora
    )
    model = exports.make_model(config, build)
    folder = exports.write_checkpoint(tmp_path / "run", model, config, build)
    export(folder, tmp_path / "out")
    assert Pair(model, trainer.load(tmp_path / "out"), build).difference() < 1e-4


def test_frozen_random_weights_of_half_precision_are_those_of_the_run(build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build, attention="mmca", precision="bf16")
    model = exports.make_model(config, build)
    exports.write_checkpoint(tmp_path / "run", model, config, build)
    export(tmp_path / "run", tmp_path / "out")
    loaded = trainer.load(tmp_path / "out")
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter), name


def test_the_loaded_model_says_what_chat_needs(pair_of: MakePair, build: Build, tmp_path: Path) -> None:
    loaded = pair_of(attention="mmca").after
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.geometry == build.manifest.config.image
    assert loaded.chat_tokenizer.tokenizer.fingerprint == build.manifest.tokenizer.fingerprint
    assert loaded.facts == build.manifest.facts()
    assert loaded.facts.datasets["mine"].samples == 6
    assert (loaded.facts.hash, loaded.step, loaded.folder) == (build.manifest.hash, 7, tmp_path / "out")
    head = trainer.load(tmp_path / "out", dtype=torch.bfloat16).model.decoder.get_output_embeddings()
    assert head.weight.dtype == torch.bfloat16


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, trainer; trainer.load; print(*sys.modules)"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert not {"torch", "transformers", "deepspeed", "peft"} & set(done.stdout.split())


def test_a_decoder_that_knows_eager_attention_alone_comes_back(build: Build, tmp_path: Path) -> None:
    kinds = {"attention_types": [[["global"], 2]], "attention_layers": ["global"] * 2}
    sizes = {"model_type": "gpt_neo", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "eos_token_id": None, **kinds}
    config = exports.config_of(build, decoder={"config": sizes, "attn_implementation": "eager"})
    exports.write_checkpoint(tmp_path / "run", exports.make_model(config, build), config, build)
    export(tmp_path / "run", tmp_path / "out")
    assert type(trainer.load(tmp_path / "out").model.decoder).__name__ == "GPTNeoForCausalLM"
