"""Adapters next to a decoder in 4 bits: what is held and trained, resuming, and exports from the original weights."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import shards
from dst.errors import ConfigError
from shards import Build
from tests.support import exports, train_runs
from trainer.checkpoint.frozen_fingerprint import frozen_elements
from trainer.config.run import load_config
from trainer.export.export import export
from trainer.training import preflight
from trainer.training.assemble import assemble
from trainer.training.restore import open_run, restore

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes"
)
QUANTIZED: dict[str, Any] = {"decoder": {"rank": 2}, "quantize_decoder": "nf4"}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_runs.compiled(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return exports.make_build(tmp_path_factory.mktemp("small"))


def config_of(folder: Path, build: Path, **settings: Any) -> Path:
    return train_runs.config_file(
        folder,
        build,
        **{
            "learning_rates": {"embeddings": None, "decoder": None, "lora": 1e-2},
            "lora": QUANTIZED,
            "zero": {"stage": 1},
            **settings,
        },
    )


@needs_bitsandbytes
def test_linear_layers_are_held_in_4_bits_and_adapters_are_trained(small: Build) -> None:
    settings: dict[str, Any] = {"decoder": {"preset": "tiny_llama"}, "learning_rates": {"projector": None}}
    lora: dict[str, Any] = {
        "decoder": {"rank": 2, "modules_to_save": ["layers.0.mlp", "lm_head"]},
        "quantize_decoder": "nf4",
    }
    full = assemble(exports.config_of(small, **settings, lora={"decoder": lora["decoder"]}), small.manifest.facts())
    made = assemble(exports.config_of(small, **settings, lora=lora), small.manifest.facts())
    in_4_bits = {name for name, each in made.model.named_parameters() if each.dtype == torch.uint8}
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-3] for name in in_4_bits} == layers
    assert not any("layers.0.mlp" in name or "lm_head" in name for name in in_4_bits)
    assert [row.parameters for row in made.rows] == [row.parameters for row in full.rows]
    assert made.weights == full.weights
    trained = {name for name, each in made.model.named_parameters() if each.requires_grad}
    assert trained == {name for name, each in full.model.named_parameters() if each.requires_grad}
    assert frozen_elements(made.model) == frozen_elements(full.model)


@needs_bitsandbytes
@pytest.mark.parametrize("dora", [False, True])
def test_quantized_layers_compute_nearly_what_the_original_ones_do(dora: bool, small: Build) -> None:
    lora: dict[str, Any] = {"decoder": {"rank": 2, "dora": dora}}
    models = [
        assemble(exports.config_of(small, lora=each), small.manifest.facts()).model.eval()
        for each in (lora, {**lora, "quantize_decoder": "nf4"})
    ]
    ids = torch.arange(5, 25)[None]
    hidden = []
    for model in models:
        embedded = model.decoder.get_input_embeddings()(ids)
        with torch.no_grad():
            out = model.decoder(inputs_embeds=embedded, position_ids=torch.arange(20)[None], use_cache=False)
        hidden.append(out.logits)
    difference = float((hidden[0] - hidden[1]).norm() / hidden[0].norm())
    assert 1e-4 < difference < 0.2


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (2, "bf16")])
def test_a_run_resumes_and_is_exported_from_the_original_weights(
    stage: int, precision: str, build: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"zero": {"stage": stage}, "precision": precision}
    whole = config_of(tmp_path / "whole", build, schedule={"steps": 4}, checkpoints={"every": 2}, **settings)
    train_runs.train(whole, ranks=2)
    out = tmp_path / "whole/out"
    losses = train_runs.losses(out)
    (out / "checkpoints/latest").write_text("step-00000002\n")
    train_runs.train(whole, f"checkpoints.resume={out / 'checkpoints/step-00000002'}", ranks=2)
    assert train_runs.losses(out) == pytest.approx(losses, rel=1e-6)

    config = load_config(whole)
    original = assemble(
        load_config(whole, ["lora.quantize_decoder=null"]), shards.open(config.build).manifest.facts()
    ).model
    base = {
        name.replace(".base_layer", ""): parameter.float()
        for name, parameter in original.named_parameters()
        if not parameter.requires_grad
    }
    merged = restore(open_run(out))
    checkpoint = open_run(out).checkpoint
    name = "decoder.model.layers.1.mlp.up_proj"
    update = checkpoint.weight(f"{name}.lora_B.default.weight") @ checkpoint.weight(f"{name}.lora_A.default.weight")
    expected = base[f"{name}.weight"] + update * 32 / 2
    torch.testing.assert_close(merged.get_parameter(f"{name}.weight"), expected)
    export(out, tmp_path / "exported", precision="fp32")
    stored = exports.tensors_in(tmp_path / "exported")
    assert torch.equal(stored[f"{name}.weight"], merged.get_parameter(f"{name}.weight"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lora": {"quantize_decoder": "nf4"}}, "lora.quantize_decoder: needs adapters in the decoder"),
        ({"learning_rates": {"decoder": 1e-5}}, "lora.quantize_decoder: needs a frozen decoder"),
        ({"zero": {"stage": 3}}, "lora.quantize_decoder: 4-bit weights cannot be partitioned by zero.stage: 3"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    settings: dict[str, Any], problem: str, build: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load_config(config_of(tmp_path, build, **settings))


def test_the_missing_package_is_named(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "QLORA", "a_package_that_is_missing")
    with pytest.raises(ConfigError, match=r"lora.quantize_decoder: .*; pip install 'dsvl\[qlora\]'"):
        preflight.prepare(config_of(tmp_path, build), (), 1, loads_model=False)
