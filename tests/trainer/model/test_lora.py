"""Adapters start as nothing, train alone or with the saved modules, and merge away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from torch import nn

from shards.loader.fields import BatchFields
from tests.support import model_batches
from tests.support.adapted_models import FROZEN, OPEN_CLIP, adapted_names, experts
from trainer.config.model import DecoderConfig, EncoderConfig, LoraAdapters, LoraConfig
from trainer.model.lora import add_adapters, add_lora, merge_lora
from trainer.model.param_groups import choose_trained, parameter_groups
from trainer.model.vision_chat import VisionChatModel

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def logits(model: VisionChatModel) -> torch.Tensor:
    inputs = model_batches.layout([model_batches.SAMPLES])
    return model.logits(BatchFields(**inputs, images=model_batches.random_images(3)))


def shake(model: nn.Module) -> None:
    """Adapters start as nothing; give them something to say."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def train_and_merge(model: VisionChatModel, adapters: LoraAdapters, tolerance: float | None = None) -> set[str]:
    """Add adapters that start as nothing, train, and merge away; returns the trained names, all of adapters."""
    names = set(model.state_dict())
    before = logits(model)
    add_adapters(model, adapters)
    model.to(before.dtype)
    choose_trained(model, FROZEN)
    torch.testing.assert_close(logits(model), before)
    shake(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, rtol=1e-2)
    torch.autograd.backward(adapted.square().mean())
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    merge_lora(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(logits(model), adapted, rtol=tolerance, atol=tolerance)
    return trained


@pytest.mark.parametrize(
    ("encoder", "encoder_targets"),
    [
        (model_batches.ENCODER, "all-linear"),
        (model_batches.ENCODER, ("query", "value")),
        (OPEN_CLIP, "all-linear"),
        (OPEN_CLIP, ("attn", "c_fc")),
    ],
)
def test_adapters_start_as_nothing_learn_and_merge(encoder: EncoderConfig, encoder_targets: Any) -> None:
    encoder_lora = LoraConfig(rank=2, alpha=6, target_modules=encoder_targets)
    train_and_merge(model_batches.make(encoder=encoder), LoraAdapters(decoder=LoraConfig(rank=2), encoder=encoder_lora))


@pytest.mark.parametrize("preset", ["tiny_llama", "tiny_qwen2", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [{"rslora": True}, {"dora": True}, {"init": "gaussian"}, {"init": "orthogonal"}, {"dora": True, "rslora": True}],
)
def test_every_kind_of_adapter_starts_as_nothing_and_merges(preset: str, options: dict[str, Any]) -> None:
    decoder = DecoderConfig(config=GPT2) if preset == "gpt2" else DecoderConfig(preset=preset)
    model = model_batches.make(decoder=decoder)
    names, before = set(model.state_dict()), logits(model)
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=4, **options), encoder=LoraConfig(rank=2, **options)))
    model.double()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    shake(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, rtol=1e-2)
    merge_lora(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(logits(model), adapted)


def test_the_scale_of_rslora_is_alpha_over_the_root_of_the_rank() -> None:
    updates = []
    for rslora in (False, True):
        root = nn.Sequential(nn.Linear(8, 8, bias=False))
        before = root.get_parameter("0.weight").detach().clone()
        torch.manual_seed(0)
        add_lora(root, LoraConfig(rank=4, alpha=6, rslora=rslora), where="lora")
        shake(root)
        merge_lora(root)
        updates.append(root.get_parameter("0.weight") - before)
    torch.testing.assert_close(updates[1], updates[0] * 2)


@pytest.mark.parametrize("preset", ["tiny_llama", "tiny_qwen2"])  # an untied and a tied head
def test_saved_modules_are_trained_in_full_with_the_rate_of_the_adapters(preset: str) -> None:
    model = model_batches.make(decoder=DecoderConfig(preset=preset))
    names = set(model.state_dict())
    lora = LoraConfig(rank=2, modules_to_save=("lm_head", "model.layers.0.mlp"))
    add_adapters(model, LoraAdapters(decoder=lora))
    choose_trained(model, replace(FROZEN, lora=3e-4))
    in_full = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    head = "decoder.model.embed_tokens.weight" if preset == "tiny_qwen2" else "decoder.lm_head.weight"
    mlp = {f"decoder.model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert in_full == {head, *mlp}
    assert {group.learning_rate for group in parameter_groups(model, replace(FROZEN, lora=3e-4), 0.1)} == {3e-4}
    assert not any("layers.0.mlp" in name for name in adapted_names(model)), "a module is adapted or saved, not both"
    model.train()
    model(**model_batches.layout([model_batches.SAMPLES]), images=model_batches.random_images(3)).total.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None and "lora_" not in n} == in_full
    tied = model.decoder.get_output_embeddings().weight is model.decoder.get_input_embeddings().weight
    assert tied == (preset == "tiny_qwen2")
    merge_lora(model)
    assert set(model.state_dict()) == names


def test_an_adapter_of_a_head_of_its_own_merges() -> None:
    model = model_batches.make()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2, target_modules=("lm_head",))))
    model.double()
    shake(model)
    adapted = logits(model)
    merge_lora(model)
    torch.testing.assert_close(logits(model), adapted)


def test_experts_are_adapted_trained_and_merged() -> None:
    lora = LoraConfig(rank=2, target_parameters=("gate_up_proj", "down_proj"))
    trained = train_and_merge(experts(), LoraAdapters(decoder=lora), tolerance=1e-4)
    assert sum("experts" in name for name in trained) == 2 * 2 * 2
