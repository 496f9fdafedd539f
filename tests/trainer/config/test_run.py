"""The training config: every problem at once, by dotted path, before a model is loaded."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import shards
from dst.errors import ConfigError
from tests.support import small_blends
from trainer.config.defaults import default_yaml
from trainer.config.run import TrainConfig, accumulation, check_ranks, config_from, load_config, to_tree, train_schema
from trainer.training.preflight import check_config_fits_build, check_sequences

MODEL = {"encoder": {"kind": "tiny"}, "decoder": {"preset": "tiny_llama"}}


def tree(**sections: Any) -> dict[str, Any]:
    return {"build": "b", "out": "o", "model": MODEL, **sections}


def config(**sections: Any) -> TrainConfig:
    return config_from(tree(**sections), "train.yaml")


def problems(**sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(**sections)
    return [problem.removeprefix("train.yaml: ") for problem in caught.value.problems]


def test_the_printed_default_is_the_default_with_every_field_and_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(default_yaml())
    loaded = load_config(path)
    assert to_tree(loaded)["batch"] == to_tree(config())["batch"]
    for section in (
        "learning_rates",
        "lora",
        "optimizer",
        "schedule",
        "zero",
        "checkpoints",
        "logging",
        "evaluation",
        "expect",
    ):
        assert getattr(loaded, section) == getattr(config(), section)
    lines = default_yaml().splitlines()
    for number, line in enumerate(lines):
        assert len(line) <= 120
        if line and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), f"{line} has no comment"


def test_the_schema_has_every_key_of_the_printed_default_and_says_what_it_means() -> None:
    schema = train_schema()

    def compare(tree: dict[str, Any], part: dict[str, Any], path: str) -> None:
        for key, value in tree.items():
            actual = part["properties"][key]
            assert actual["description"], f"{path}{key}"
            if isinstance(value, dict) and value:
                compare(value, schema["$defs"][actual["$ref"].rpartition("/")[2]], f"{path}{key}.")

    compare(yaml.safe_load(default_yaml()), schema, "")
    assert schema["$defs"]["ModelConfig"]["anyOf"] == [
        {"required": ["encoder", "decoder"]},
        {"required": ["init_from"]},
    ]


def test_the_printed_adapters_work_without_their_comment_marks() -> None:
    text = default_yaml()
    start = text.index("  # decoder:\n  #   # Width")
    lines = text[start:].splitlines()
    inside = itertools.takewhile(lambda line: line.startswith("  #   "), lines[1:])
    block = [line.removeprefix("  # ") for line in (lines[0], *inside)]
    actual = yaml.safe_load("\n".join(block))
    assert config(lora=actual).lora.decoder == config(lora={"decoder": {}}).lora.decoder


def test_a_config_survives_json() -> None:
    made = config(lora={"decoder": {"target_modules": ["q_proj"]}}, optimizer={"betas": [0.8, 0.9]})
    assert config_from(json.loads(json.dumps(to_tree(made))), "x") == made


def test_settings_go_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(tree()))
    made = load_config(
        path, ["batch.global_batch_size=64", "learning_rates.decoder=2e-5", "learning_rates.projector=null"]
    )
    assert (made.batch.global_batch_size, made.learning_rates.decoder, made.learning_rates.projector) == (
        64,
        2e-5,
        None,
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["batch.global_batch_size"])
    assert caught.value.problems == ["--set batch.global_batch_size: expected the form a.b=value"]


def test_all_problems_are_reported_at_once() -> None:
    lines = problems(
        batch={"global_batch_size": 0, "micro_batch_size": 0},
        optimizer={"betas": [0.9], "weight_decay": -1, "eps": 0},
        schedule={"steps": 5, "epochs": 1, "warmup_ratio": 2},
        precision="fp32",
        zero={"stage": 1, "offload_parameters": True},
        checkpoints={"keep": 0},
    )
    assert lines == [
        "batch.global_batch_size: got 0; expected at least 1",
        "batch.micro_batch_size: got 0; expected at least 1",
        "optimizer.betas.1: missing",
        "optimizer.eps: got 0; expected more than 0",
        "optimizer.weight_decay: got -1; expected at least 0",
        "schedule.warmup_ratio: got 2; expected at most 1",
        "checkpoints.keep: got 0; expected at least 1",
        "schedule: got both steps and epochs; expected one of them",
        "zero.offload_parameters: needs zero.stage: 3, got 1",
    ]


def test_an_unknown_key_names_its_nearest_match() -> None:
    (problem,) = problems(bacth={"rows": 4})
    assert problem.startswith("bacth: unknown key; did you mean batch?")


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        (
            {"learning_rates": {"projector": None}},
            "learning_rates: nothing is trained; set a learning rate for projector",
        ),
        ({"zero": {"stage": 0}}, "zero.stage: 0 cannot train in bf16: Adam's step counter runs one ahead there"),
        ({"optimizer": {"kind": "cpu"}}, "optimizer.kind: cpu works on offloaded state alone"),
        (
            {"optimizer": {"kind": "fused"}, "zero": {"offload_optimizer": True}},
            "optimizer.kind: fused does not work on offloaded state",
        ),
        ({"model": {"encoder": {"kind": "tiny"}, "decoder": {}}}, "model.decoder: got none of name, preset and config"),
    ],
)
def test_what_cannot_train_is_refused_with_the_reason(sections: dict[str, Any], problem: str) -> None:
    (found,) = problems(**sections)
    assert found.startswith(problem)


def test_sequences_that_the_ranks_cannot_share_are_refused_with_what_would_work() -> None:
    made = config(batch={"global_batch_size": 12, "micro_batch_size": 4})
    assert check_ranks(made, 1) == check_ranks(made, 3) == []
    assert [accumulation(made, ranks) for ranks in (1, 3)] == [3, 1]
    assert check_ranks(made, 2) == [
        "batch.global_batch_size: got 12, which 2 ranks cannot share by batch.micro_batch_size 4; expected a multiple "
        "of 8; set batch.micro_batch_size to one of 1, 2, 3, 6, or change the number of ranks"
    ]
    (problem,) = check_ranks(made, 5)
    assert problem.endswith("set batch.global_batch_size to a multiple of 5, or change the number of ranks")
    (problem,) = problems(batch={"global_batch_size": 10, "micro_batch_size": 4})
    assert "set batch.micro_batch_size to one of 1, 2, 5, 10" in problem


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> shards.Build:
    folder = tmp_path_factory.mktemp("config")
    blend = small_blends.chat_blend(
        folder, [small_blends.chat_record(number) for number in range(4)], limits={"max_length": 256, "max_images": 3}
    )
    return shards.open(small_blends.build(blend).path)


def test_a_build_is_held_against_all_that_is_expected_of_it(build: shards.Build) -> None:
    manifest = build.manifest
    size = manifest.config.image.size
    fits = config(
        expect={
            "template": "visualchat",
            "tokenizer": manifest.tokenizer.fingerprint[:8],
            "manifest": manifest.hash,
            "image_size": size,
        },
    )
    assert check_config_fits_build(fits, manifest) == []
    wrong = config(
        expect={"template": "vicuna", "tokenizer": "0123", "manifest": "4567", "image_size": size + 1},
        evaluation={"every": 5},
    )
    assert [problem.partition(":")[0] for problem in check_config_fits_build(wrong, manifest)] == [
        "expect.template",
        "expect.tokenizer",
        "expect.manifest",
        "expect.image_size",
        "evaluation.every",
    ]
    (unknown,) = check_config_fits_build(config(expect={"template": "vicunia"}), manifest)
    assert "did you mean vicuna?" in unknown


def test_a_build_that_is_only_for_evaluation_is_not_trained_on(build: shards.Build) -> None:
    held_out = {
        name: replace(dataset, shards={"train": dataset.shards["eval"], "eval": dataset.shards["train"]})
        for name, dataset in build.manifest.datasets.items()
    }
    (problem,) = check_config_fits_build(config(), replace(build.manifest, datasets=held_out))
    assert problem.startswith("build: this build has no train samples, only held-out ones; train on another build")


def test_sequences_may_be_shorter_than_the_build_allows_if_every_sample_fits(build: shards.Build) -> None:
    longest = max(len(sample.ids) for sample in build["train"])
    assert longest < 256
    for batch in ({}, {"max_length": 256}, {"max_length": longest, "max_images": 1}):
        assert check_sequences(config(batch=batch), build) == []
    (problem,) = check_sequences(config(batch={"max_length": longest - 1}), build)
    assert problem.startswith("batch.max_length, batch.max_images: ")
    assert f" has {longest} tokens, a sequence takes {longest - 1}" in problem


def test_a_home_folder_is_written_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert config(out="~/run").out == "/home/me/run"


def test_the_names_of_peft_are_answered_with_ours() -> None:
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "use_rslora": True, "use_dora": True}
    assert problems(lora={"decoder": lora}) == [
        f"lora.decoder.{other}: unknown key; its name here is {ours}"
        for other, ours in (
            ("r", "rank"),
            ("lora_alpha", "alpha"),
            ("lora_dropout", "dropout"),
            ("use_rslora", "rslora"),
            ("use_dora", "dora"),
        )
    ]


def test_parameters_are_adapted_only_where_peft_can() -> None:
    experts = {"target_parameters": ["down_proj"]}
    (line,) = problems(lora={"decoder": {**experts, "dropout": 0.1}})
    assert line.startswith("lora.decoder.target_parameters: peft adapts them without dropout and dora")
    (line,) = problems(lora={"encoder": experts})
    assert line.startswith("lora.encoder.target_parameters: expected none, since encoders have no experts")
    (line,) = problems(lora={"decoder": experts}, zero={"stage": 3})
    assert line == "lora.decoder.target_parameters: got zero.stage 3, which partitions them; set zero.stage: 2"
