"""The model's part of the config: values that cannot work are reported by dotted path, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from dst.common.config import field_docs
from dst.errors import ConfigError
from trainer.config import model as model_config
from trainer.config.model import (
    DecoderConfig,
    EncoderConfig,
    LearningRates,
    LoraAdapters,
    LoraConfig,
    ModelConfig,
    ProjectorConfig,
    check_model_values,
    check_trained,
)
from trainer.config.run import config_from

NAMED = EncoderConfig(name="ViT-L-14-336", weights="openai")
GOOD = ModelConfig(encoder=NAMED, decoder=DecoderConfig(preset="tiny_llama"))
MODEL: dict[str, dict[str, Any]] = {
    "encoder": {"name": "ViT-L-14-336", "weights": "openai"},
    "projector": {},
    "decoder": {"preset": "tiny_llama"},
}


def problems_of(sections: dict[str, Any]) -> list[str]:
    """What is reported for train.yaml with these sections."""
    with pytest.raises(ConfigError) as caught:
        config_from({"build": "b", "out": "o", "model": MODEL, **sections}, "x")
    return [problem.removeprefix("x: ") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("encoder", {"name": None}, "model.encoder: got neither of name and config"),
        ("encoder", {"config": {"a": 1}}, "model.encoder: got both of name and config"),
        ("encoder", {"weights": None}, "model.encoder.weights: got None; expected a pretrained tag"),
        ("encoder", {"kind": "hf"}, "model.encoder.weights: got 'openai'; expected none"),
        ("encoder", {"kind": "tiny"}, "model.encoder.name: got 'ViT-L-14-336'; expected none"),
        (
            "encoder",
            {"kind": "qwen_vl", "name": None, "weights": None},
            "model.encoder.weights: got None; expected the",
        ),
        ("encoder", {"kind": "qwen_vl", "name": None, "layer": -2}, "model.encoder.layer: got -2; expected none"),
        (
            "encoder",
            {"kind": "qwen_vl", "name": None, "class_token": True},
            "model.encoder.class_token: got True; expected false",
        ),
        ("encoder", {"layer": 0}, "model.encoder.layer: got 0; expected 1"),
        ("encoder", {"image_size": 448}, "model.encoder.image_size: got 448; expected none; choose"),
        ("encoder", {"mean": [0.5, 0.5, 0.5]}, "model.encoder: got only one of mean and std"),
        ("encoder", {"mean": [0.5], "std": [0.5]}, "model.encoder.mean: got [0.5]; expected a list of at least 3"),
        ("encoder", {"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}, "model.encoder.std.2: got 0.0; expected more than 0"),
        ("projector", {"num_queries": 0}, "model.projector.num_queries: got 0; expected at least 1"),
        ("decoder", {"name": "some/model"}, "model.decoder: got name and preset of"),
        ("decoder", {"preset": None}, "model.decoder: got none of"),
        ("decoder", {"preset": None, "config": {"a": 1}}, "model.decoder.config.model_type: missing"),
    ],
)
def test_values_that_cannot_work_are_reported(part: str, values: dict[str, Any], message: str) -> None:
    assert not check_model_values(GOOD)
    assert any(
        problem.startswith(message) for problem in problems_of({"model": {**MODEL, part: {**MODEL[part], **values}}})
    )


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("learning_rates", {"projector": None}, "learning_rates: nothing is trained"),
        ("learning_rates", {"decoder": -1.0}, "learning_rates.decoder: got -1.0; expected more than 0"),
        ("lora", {"decoder": {"rank": 0}}, "lora.decoder.rank: got 0; expected at least 1"),
        ("lora", {"decoder": {"alpha": 0}}, "lora.decoder.alpha: got 0; expected more than 0"),
        ("lora", {"encoder": {"dropout": 1.0}}, "lora.encoder.dropout: got 1.0; expected less than 1"),
        ("lora", {"encoder": {"target_modules": []}}, "lora.encoder.target_modules: got a list []; expected "),
        ("lora", {"encoder": {"target_modules": ""}}, "lora.encoder.target_modules: got text ''; expected "),
    ],
)
def test_training_values_that_cannot_work_are_reported(section: str, values: dict[str, Any], message: str) -> None:
    assert not check_trained(LearningRates(), LoraAdapters())
    assert not check_trained(LearningRates(projector=None), LoraAdapters(decoder=LoraConfig()))
    (problem,) = problems_of({section: values})
    assert problem.startswith(message)


def test_every_field_of_the_config_says_what_it_is() -> None:
    for kind in (EncoderConfig, ProjectorConfig, DecoderConfig, ModelConfig, LoraConfig, LearningRates, LoraAdapters):
        assert set(field_docs(kind)) == set(kind.__dataclass_fields__), kind
    assert model_config.__doc__
