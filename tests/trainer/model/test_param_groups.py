"""Only the chosen weights are trained: every parameter is in one component, and every trained one in one group."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from rich.console import Console

from dst.errors import ConfigError
from tests.support import model_batches
from tests.support.adapted_models import FROZEN
from trainer.config.model import DecoderConfig, LearningRates, LoraAdapters, LoraConfig
from trainer.model.lora import add_adapters
from trainer.model.param_groups import by_component, choose_trained, component_rows, parameter_groups, print_parameters

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


def test_every_parameter_is_in_one_component() -> None:
    model = model_batches.make()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(target_modules=("q_proj",))))
    components: dict[str, set[str]] = {}
    for name, _, component in by_component(model):
        components.setdefault(component, set()).add(name)
    assert set.union(*components.values()) == {name for name, _ in model.named_parameters()}
    assert components["embeddings"] == {"decoder.model.embed_tokens.weight", "decoder.lm_head.weight"}
    assert all("lora_" in name for name in components["lora"])
    assert all(name.startswith("encoder.") for name in components["encoder"])


@pytest.mark.parametrize("component", ["encoder", "projector", "embeddings", "decoder"])
@pytest.mark.parametrize("preset", ["tiny_llama", "tiny_qwen2"])
def test_gradients_flow_where_they_are_expected_and_nowhere_else(component: str, preset: str) -> None:
    model = model_batches.make(decoder=DecoderConfig(preset=preset))
    rate: dict[str, Any] = {component: 1e-3}
    choose_trained(model, replace(FROZEN, **rate))
    model.train()
    model(**model_batches.layout([model_batches.SAMPLES]), images=model_batches.random_images(3)).total.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name for name, _, each in by_component(model) if each == component}
    assert moved == expected
    assert model.encoder.training == (component == "encoder")


def test_what_was_frozen_or_not_before_makes_no_difference() -> None:
    model = model_batches.make()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    choose_trained(model, replace(FROZEN, decoder=1e-5))
    trained = {component for _, parameter, component in by_component(model) if parameter.requires_grad}
    frozen = {component for _, parameter, component in by_component(model) if not parameter.requires_grad}
    assert (trained, frozen) == ({"decoder"}, {"encoder", "projector", "embeddings"})


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing is trained"):
        choose_trained(model_batches.make(), FROZEN)


@pytest.mark.parametrize("preset", ["tiny_llama", "tiny_qwen2"])  # an untied and a tied head
def test_groups_hold_every_trained_parameter_once(preset: str) -> None:
    model = model_batches.make(decoder=DecoderConfig(preset=preset))
    rates = LearningRates(encoder=1e-6, projector=1e-3, embeddings=1e-4, decoder=1e-5, lora=2e-4)
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2)))
    choose_trained(model, rates)
    groups = parameter_groups(model, rates, 0.1)
    listed = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        component = group.name.split()[0]
        assert group.learning_rate == getattr(rates, component)
        assert group.weight_decay == (0.0 if "not decayed" in group.name else 0.1)
    free = {names[id(parameter)] for group in groups if not group.weight_decay for parameter in group.parameters}
    named = ("norm", "bias", "embed_tokens", "lm_head", "class_embedding", "position_embedding")
    assert free == {name for name in names.values() if any(part in name for part in named)}
    tied = preset == "tiny_qwen2"
    assert ("decoder.lm_head.weight" in names.values()) != tied
    torch.optim.AdamW([group.for_torch() for group in groups])


def test_the_table_counts_every_component() -> None:
    model = model_batches.make()
    rates = LearningRates()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2, target_modules=("q_proj",))))
    choose_trained(model, rates)
    rows = {row.component: row for row in component_rows(model, rates)}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert sum(row.trained for row in rows.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (rows["lora"].parameters, rows["lora"].share, rows["lora"].learning_rate) == (2 * 2 * 2 * 64, 1.0, 2e-4)
    assert (rows["decoder"].trained, rows["decoder"].share, rows["decoder"].learning_rate) == (0, 0.0, None)
    written = io.StringIO()
    print_parameters(list(rows.values()), Console(file=written, width=100))
    assert "frozen" in written.getvalue()
    assert f"{rows['projector'].parameters:,}" in written.getvalue()
