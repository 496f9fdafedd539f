"""A second stage: a run that begins with the model that another run's export holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch

import shards
import trainer
from dst.errors import ConfigError
from shards import Build
from tests.support import exports, model_batches, small_blends, train_runs
from tests.support.exports import OPEN_CLIP
from trainer.config.model import EncoderConfig
from trainer.config.run import to_tree
from trainer.errors import TrainError
from trainer.export.export import export, export_model
from trainer.model import build_model
from trainer.model.decoder import PRESETS
from trainer.model.encoders.registry import Encoder, build_encoder
from trainer.model_io.digests import sealed
from trainer.training.assemble import assemble
from trainer.training.preflight import prepare

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

MMCA = {"encoder": {"kind": "tiny", "config": {"image_size": exports.SIDE, "patch_size": 16}}, "attention": "mmca"}
EXPECTED = "expected a folder that dsvl-train export wrote, or a LLaVA folder of transformers, or its id on the hub"
CAUSAL = {"encoder": {"kind": "open_clip", "config": OPEN_CLIP}, "decoder": {"preset": "tiny_qwen2"}}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return exports.make_build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def first(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a first stage, with MMCA; all of its weights were moved."""
    return exported(tmp_path_factory.mktemp("first") / "model", build, MMCA)


def exported(out: Path, build: Build, parts: Mapping[str, Any]) -> Path:
    config = exports.config_of(build, learning_rates=exports.ALL, **parts)
    export_model(exports.make_model(config, build), config, build, out, step=5)
    return out


def second_stage(folder: Path, build: Path | str, start: Path, **settings: Any) -> Path:
    """train.yaml of a run that begins with an export."""
    path = train_runs.config_file(folder, Path(build), **settings)
    tree = yaml.safe_load(path.read_text())
    tree["model"] = {"init_from": str(start), **settings.get("model", {})}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def text_build(folder: Path, tokenizer: Path, image_tokens: int = 4) -> Path:
    """A build of text alone, for the same encoder."""
    blend = small_blends.chat_blend(
        folder,
        [small_blends.chat_record(number, rounds=2) for number in range(12)],
        tokenizer=str(tokenizer),
        image_tokens=image_tokens,
        limits={"max_length": train_runs.LENGTH},
        image={"size": exports.SIDE, "store": "resized"},
    )
    return small_blends.build(blend).path


@pytest.mark.parametrize(("parts", "form"), [(MMCA, "dsvl"), (CAUSAL, "llava")], ids=["dsvl", "llava"])
def test_a_run_begins_with_all_weights_of_an_export(
    parts: Mapping[str, Any], form: str, build: Build, tmp_path: Path
) -> None:
    start = exported(tmp_path / "first", build, parts)
    assert json.loads((start / "dsvl.json").read_text())["form"] == form
    path = second_stage(tmp_path, build.store.location, start, seed=1, lora={"decoder": {"rank": 2}})

    config, opened = prepare(path, (), 1, loads_model=True)
    begun = assemble(config, opened.manifest.facts()).model.eval()

    before = trainer.load(start)
    ids = exports.expanded(before.model, before.chat_tokenizer)
    pixels = exports.pixels_of(exports.sample_images(), build)
    expected = exports.logits_of(before.model, ids, pixels)
    assert (exports.logits_of(begun, ids, pixels) - expected).abs().max() < 1e-5  # LoRA starts as no change at all


def test_attention_and_kernel_may_be_others_than_the_exports(build: Build, first: Path, tmp_path: Path) -> None:
    path = second_stage(
        tmp_path,
        build.store.location,
        first,
        model={"attention": "causal", "decoder": {"attn_implementation": "eager"}},
    )
    config, opened = prepare(path, (), 1, loads_model=True)
    assert (config.model.attention, config.model.decoder.attn_implementation) == ("causal", "eager")
    assert assemble(config, opened.manifest.facts()).model.attention == "causal"


def test_a_run_builds_its_encoder_for_one_check_and_for_training(
    build: Build, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def recording(config: EncoderConfig, *, weights: bool = True) -> Encoder:
        devices.append((encoder := build_encoder(config, weights=weights)).tower.class_embedding.device.type)
        return encoder

    monkeypatch.setattr(build_model, "build_encoder", recording)
    config, opened = prepare(second_stage(tmp_path, build.store.location, first), (), 1, loads_model=True)
    assemble(config, opened.manifest.facts())
    assert devices == ["meta", "cpu"]


def test_parts_that_are_others_than_the_exports_are_refused(build: Build, first: Path, tmp_path: Path) -> None:
    parts = {
        "encoder": {"kind": "hf"},
        "decoder": {"preset": "tiny_qwen2", "attn_implementation": "eager"},
        "projector": "mlp",
    }
    with pytest.raises(ConfigError) as caught:
        prepare(second_stage(tmp_path, build.store.location, first, model=parts), (), 1, loads_model=True)
    assert sorted(caught.value.problems) == [
        "train.yaml: model.decoder.preset: got 'tiny_qwen2', but the model at model.init_from has nothing; remove it",
        "train.yaml: model.encoder.kind: got 'hf', but the model at model.init_from has 'tiny'; remove it",
        "train.yaml: model.projector: got 'mlp', but the model at model.init_from defines it; remove it",
    ]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"attenton": "causal"}, "model.attenton: unknown key; did you mean attention?"),
        (
            {"decoder": {"attn_implementatoin": "eager"}},
            "model.decoder.attn_implementatoin: unknown key; did you mean attn_implementation?",
        ),
        ({"init_from": 3}, "model.init_from: got 3; " + EXPECTED),
        ({"init_from": ""}, "model.init_from: got ''; " + EXPECTED),
    ],
)
def test_typing_errors_next_to_init_from_are_reported_as_everywhere(
    model: dict[str, Any], problem: str, build: Build, first: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(second_stage(tmp_path, build.store.location, first, model=model), (), 1, loads_model=True)
    assert caught.value.problems == [f"train.yaml: {problem}"]


def test_the_config_that_a_run_wrote_can_be_run_again(build: Build, first: Path, tmp_path: Path) -> None:
    config, _ = prepare(second_stage(tmp_path, build.store.location, first), (), 1, loads_model=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_tree(config)), encoding="utf-8")
    assert prepare(tmp_path / "config.yaml", (), 1, loads_model=True)[0] == config


def test_a_build_that_the_exports_parts_do_not_fit_is_to_be_built_again(first: Path, tmp_path: Path) -> None:
    path = second_stage(tmp_path, text_build(tmp_path, small_blends.TOKENIZER, image_tokens=9), first)
    with pytest.raises(ConfigError) as caught:
        prepare(path, (), 1, loads_model=True)
    (problem,) = caught.value.problems
    assert problem.endswith("this build was compiled with 9; rebuild with image_tokens: 4")


def test_mmca_that_the_exports_decoder_cannot_do_is_refused(build: Build, tmp_path: Path) -> None:
    decoder = {
        "config": {**PRESETS["tiny_llama"], "model_type": "gemma2", "head_dim": 16},
        "attn_implementation": "eager",
    }
    start = exported(tmp_path / "first", build, {"decoder": decoder})
    model = {"attention": "mmca", "decoder": {"attn_implementation": "eager"}}
    config, opened = prepare(second_stage(tmp_path, build.store.location, start, model=model), (), 1, loads_model=True)
    with pytest.raises(ConfigError, match=r"cannot do mmca: .*choose another decoder, or set model.attention: causal"):
        assemble(config, opened.manifest.facts())


def test_a_start_that_is_not_an_export_says_how_to_make_one(build: Build, tmp_path: Path) -> None:
    path = second_stage(tmp_path, tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        prepare(path, (), 1, loads_model=True)
    start, order = caught.value.problems
    assert start == f"train.yaml: model.init_from: {tmp_path / 'run'}: no such folder; {EXPECTED}"
    assert order.startswith("build: ")


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_start_is_refused_before_anything_is_loaded(
    lost: str, build: Build, first: Path, tmp_path: Path
) -> None:
    start = shutil.copytree(first, tmp_path / "first")
    data = bytearray((start / lost).read_bytes())
    (start / lost).write_bytes(data[:-1] if lost == "model.safetensors" else data.replace(b"a", b"b", 1))
    with pytest.raises(ConfigError, match=rf"model\.init_from: .*{lost}: .*copy it again, or export the model again"):
        prepare(second_stage(tmp_path, build.store.location, start), (), 1, loads_model=False)


def test_a_damaged_record_is_refused_and_not_blamed_on_the_config(build: Build, first: Path, tmp_path: Path) -> None:
    start = shutil.copytree(first, tmp_path / "first")
    record = json.loads((start / "dsvl.json").read_text())
    damaged = {
        "model: missing; expected an object": {key: record[key] for key in record if key != "model"},
        "build: missing; expected an object": {key: record[key] for key in record if key != "build"},
        "encoder.kind: unknown encoder 'bogus'": {**record, "model": {**record["model"], "encoder": {"kind": "bogus"}}},
        "files: got []; expected an object": {**record, "files": []},
    }
    for why, text in damaged.items():
        (start / "dsvl.json").write_bytes(sealed(text, indent=2))
        with pytest.raises((TrainError, ConfigError)) as caught:
            prepare(second_stage(tmp_path, build.store.location, start), (), 1, loads_model=True)
        assert f"{start / 'dsvl.json'}: cannot be used" in str(caught.value)
        assert why in str(caught.value)


def test_a_build_of_another_tokenizer_is_refused(build: Build, first: Path, tmp_path: Path) -> None:
    tokenizer = shutil.copytree(small_blends.TOKENIZER, tmp_path / "tokenizer")
    tree = json.loads((tokenizer / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    token_a, token_b = [token for token in vocabulary if len(token) == 1][:2]
    vocabulary[token_a], vocabulary[token_b] = vocabulary[token_b], vocabulary[token_a]
    (tokenizer / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError) as caught:
        prepare(second_stage(tmp_path, text_build(tmp_path, tokenizer), first), (), 1, loads_model=True)
    (problem,) = caught.value.problems
    assert problem.startswith(f"model.init_from: {first} was trained with the tokenizer ")
    assert problem.endswith(f"; rebuild with tokenizer: {first}")


def test_a_build_with_the_exports_tokenizer_is_for_that_model(build: Build, first: Path, tmp_path: Path) -> None:
    path = second_stage(tmp_path, text_build(tmp_path, first), first)
    config, opened = prepare(path, (), 1, loads_model=True)
    assert opened.manifest.tokenizer == build.manifest.tokenizer
    assert config.model.init_from == str(first)


def test_both_stages_train_and_the_last_export_names_all_of_them(tmp_path: Path) -> None:
    build = train_runs.compiled(tmp_path)
    first = train_runs.config_file(tmp_path / "one", build, learning_rates={"embeddings": None, "decoder": None})
    train_runs.train(first, "schedule.steps=3")
    export(tmp_path / "one/out", tmp_path / "first")

    more = text_build(tmp_path / "more", small_blends.TOKENIZER)
    rates = {"projector": None, "embeddings": None, "decoder": None}
    settings = {"learning_rates": rates, "lora": {"decoder": {"rank": 2}}}
    two = second_stage(tmp_path / "two", more, tmp_path / "first", **settings)
    train_runs.train(two, "schedule.steps=2", "checkpoints.every=1", "schedule.kind=constant", ranks=2)
    train_runs.train(two, "schedule.steps=4", "checkpoints.every=1", "schedule.kind=constant")  # it resumes
    assert len(train_runs.losses(tmp_path / "two/out")) == 4
    export(tmp_path / "two/out", tmp_path / "second")

    before, after = exports.tensors_in(tmp_path / "first"), exports.tensors_in(tmp_path / "second")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("_proj.weight" in name for name in changed), "only what LoRA adapts may change"

    record = json.loads((tmp_path / "second/dsvl.json").read_text())
    hashes = [shards.open(folder).manifest.hash for folder in (build, more)]
    assert [stage["build"]["hash"] for stage in record["earlier"]] == hashes[:1]
    assert record["earlier"][0]["step"] == 3
    assert record["model"]["init_from"] is record["training"]["model"]["init_from"] is None
    card = (tmp_path / "second/README.md").read_text()
    assert f"1. 3 optimizer steps on seen, text, build manifest `{hashes[0]}`" in card
    assert "Then 4 optimizer steps with this config" in card
    assert "the decoder `tiny_llama`, the encoder `tiny`" in card
    assert [line for line in card.splitlines() if line.startswith("- dataset: ")] == [
        f"- dataset: {name}: (its licence)" for name in ("seen", "text", "mine")
    ]

    (tmp_path / "first").rename(tmp_path / "moved")
    export(tmp_path / "two/out", tmp_path / "again", init_from=str(tmp_path / "moved"))
    assert (tmp_path / "again/dsvl.json").read_bytes() == (tmp_path / "second/dsvl.json").read_bytes()
    train_runs.train(two, f"model.init_from={tmp_path / 'moved'}", "schedule.steps=5", "schedule.kind=constant")
    shutil.copytree(tmp_path / "second", tmp_path / "first")
    with pytest.raises(ConfigError, match=r"model\.init_from: .*first is not the model that the run began with"):
        export(tmp_path / "two/out/checkpoints/step-00000004", tmp_path / "third")
    refused = train_runs.train(two, "schedule.steps=6", "schedule.kind=constant", code=2).output
    assert "first is not the model that the run began with; restore that folder, or give its new path" in refused


def test_export_refuses_a_start_for_a_run_that_has_none(build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build)
    exports.write_checkpoint(tmp_path / "run", exports.make_model(config, build), config, build)
    with pytest.raises(ConfigError, match=r"--init-from: the run of .* began with no export; remove it"):
        export(tmp_path / "run", tmp_path / "out", init_from="elsewhere")
