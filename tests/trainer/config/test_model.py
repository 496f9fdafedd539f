"""The model's part of the config: values that cannot work are told by dotted path, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dst.common.config import field_docs
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

NAMED = EncoderConfig(name="ViT-L-14-336", weights="openai")
GOOD = ModelConfig(encoder=NAMED, decoder=DecoderConfig(preset="tiny_llama"))


@pytest.mark.parametrize(
    ("part", "values", "told"),
    [
        ("encoder", {"name": None}, "model.encoder: got neither of name and config"),
        ("encoder", {"config": {"a": 1}}, "model.encoder: got both of name and config"),
        ("encoder", {"weights": None}, "model.encoder.weights: got None; wanted a pretrained tag"),
        ("encoder", {"kind": "hf"}, "model.encoder.weights: got 'openai'; wanted none"),
        ("encoder", {"kind": "tiny"}, "model.encoder.name: got 'ViT-L-14-336'; wanted none"),
        ("encoder", {"kind": "qwen_vl", "name": None, "weights": None}, "model.encoder.weights: got None; wanted the"),
        ("encoder", {"kind": "qwen_vl", "name": None, "layer": -2}, "model.encoder.layer: got -2; wanted none"),
        (
            "encoder",
            {"kind": "qwen_vl", "name": None, "class_token": True},
            "model.encoder.class_token: got True; wanted false",
        ),
        ("encoder", {"layer": 0}, "model.encoder.layer: got 0; wanted 1"),
        ("encoder", {"image_size": 448}, "model.encoder.image_size: got 448; wanted none; choose"),
        ("encoder", {"mean": (0.5, 0.5, 0.5)}, "model.encoder: got only one of mean and std"),
        ("encoder", {"mean": (0.5,), "std": (0.5,)}, "model.encoder.mean: got (0.5,); wanted three numbers"),
        ("encoder", {"mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}, "model.encoder.std: got (0.5, 0.5, 0.0); wanted"),
        ("projector", {"num_queries": 0}, "model.projector.num_queries: got 0; wanted at least 1"),
        ("decoder", {"name": "some/model"}, "model.decoder: got name and preset of"),
        ("decoder", {"preset": None}, "model.decoder: got none of"),
        ("decoder", {"preset": None, "config": {"a": 1}}, "model.decoder.config.model_type: missing"),
    ],
)
def test_values_that_cannot_work_are_told(part: str, values: dict[str, Any], told: str) -> None:
    assert not check_model_values(GOOD)
    changed: Any = replace(getattr(GOOD, part), **values)
    assert any(problem.startswith(told) for problem in check_model_values(replace(GOOD, **{part: changed})))


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("learning_rates", {"projector": None}, "learning_rates: nothing is trained"),
        ("learning_rates", {"decoder": -1.0}, "learning_rates.decoder: got -1.0; wanted a learning rate above 0"),
        ("lora", {"decoder": LoraConfig(rank=0)}, "lora.decoder.rank: got 0; wanted at least 1"),
        ("lora", {"encoder": LoraConfig(dropout=1.0)}, "lora.encoder.dropout: got 1.0; wanted 0 up to"),
        ("lora", {"encoder": LoraConfig(target_modules=())}, "lora.encoder.target_modules: got (); wanted"),
    ],
)
def test_training_values_that_cannot_work_are_told(section: str, values: dict[str, Any], told: str) -> None:
    assert not check_trained(LearningRates(), LoraAdapters())
    assert not check_trained(LearningRates(projector=None), LoraAdapters(decoder=LoraConfig()))
    rates = replace(LearningRates(), **values) if section == "learning_rates" else LearningRates()
    adapters = replace(LoraAdapters(), **values) if section == "lora" else LoraAdapters()
    assert any(problem.startswith(told) for problem in check_trained(rates, adapters))


def test_every_field_of_the_config_says_what_it_is() -> None:
    for kind in (EncoderConfig, ProjectorConfig, DecoderConfig, ModelConfig, LoraConfig, LearningRates, LoraAdapters):
        assert set(field_docs(kind)) == set(kind.__dataclass_fields__), kind
    assert model_config.__doc__
