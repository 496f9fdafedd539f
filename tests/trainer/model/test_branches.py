"""A sample with branches has the losses and gradients of its records as separate samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.errors import ConfigError
from shards import Sample
from tests.support import model_batches
from tests.support.branch_batches import shared_and_separate, shared_samples
from tests.support.model_batches import CONFIG, facts
from trainer.config.model import DecoderConfig, LoraAdapters, LoraConfig, ProjectorConfig
from trainer.errors import TrainError
from trainer.model.build_model import check_model
from trainer.model.decoder import PRESETS
from trainer.model.lora import add_adapters
from trainer.model.vision_chat import VisionChatModel

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

SAMPLES = st.lists(shared_samples(), min_size=1, max_size=2)
KINDS: dict[str, ProjectorConfig] = {
    "linear": ProjectorConfig(kind="linear"),
    "mlp": ProjectorConfig(kind="mlp"),
    "perceiver": ProjectorConfig(kind="perceiver", num_queries=model_batches.IMAGE_TOKENS, num_heads=2),
    "vit": ProjectorConfig(kind="vit", num_heads=2),
}


def model_with(*, dtype: torch.dtype = torch.float64, **parts: Any) -> VisionChatModel:
    model = model_batches.make(CONFIG, **parts).to(dtype)
    model.expect_branches()
    return model


def losses_and_gradients(
    model: VisionChatModel, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The sum of losses, the number of trained tokens, and the gradient of every trained parameter."""
    model.zero_grad()
    loss = model(**batch)
    loss.total.backward()
    gradients = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}
    return loss.total.detach(), loss.tokens, gradients


def assert_as_separate(model: VisionChatModel, samples: Sequence[Sample], tolerance: float) -> None:
    """Losses and gradients of samples and of their records apart differ by at most this part of their size.

    A parameter's gradient may be 0 but for rounding, so all are measured by the size of the whole gradient.
    """
    shared, separate = (losses_and_gradients(model, batch) for batch in shared_and_separate(samples))
    assert shared[1] == separate[1]
    torch.testing.assert_close(shared[0], separate[0], rtol=tolerance, atol=0)
    assert shared[2].keys() == separate[2].keys()
    whole = torch.stack([gradient.norm() for gradient in separate[2].values()]).norm()
    for name, gradient in shared[2].items():
        assert (gradient - separate[2][name]).norm() <= tolerance * whole, name


@pytest.mark.parametrize("attention", ["mmca", "causal"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_losses_and_gradients_are_those_of_separate_samples_with_every_decoder(
    preset: str, attention: Literal["mmca", "causal"]
) -> None:
    model = model_with(decoder=DecoderConfig(preset=preset), attention=attention)

    @settings(max_examples=5)
    @given(samples=SAMPLES)
    def check(samples: list[Sample]) -> None:
        assert_as_separate(model, samples, 1e-6)  # transformers normalises in float32

    check()


@pytest.mark.parametrize("attention", ["mmca", "causal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_every_projector_with_and_without_lora_gives_them_in_single_precision_and_with_checkpointing(
    kind: str, attention: Literal["mmca", "causal"], lora: bool
) -> None:
    model = model_with(projector=KINDS[kind], attention=attention, dtype=torch.float32)
    if lora:
        add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2)))
        model.float()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "lora_" in name or name.startswith("projector")
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.checkpoint_activations()
    model.train()

    @settings(max_examples=3)
    @given(samples=SAMPLES)
    def check(samples: list[Sample]) -> None:
        assert_as_separate(model, samples, 1e-5)

    check()
    assert any("lora_" in name for name, x in model.named_parameters() if x.grad is not None) == lora


@pytest.mark.parametrize("attention", ["mmca", "causal"])
def test_in_half_precision_they_differ_no_more_than_its_rounding(attention: Literal["mmca", "causal"]) -> None:
    exact = model_with(attention=attention)
    rounded = model_with(attention=attention, dtype=torch.bfloat16)
    exact.load_state_dict({name: tensor.double() for name, tensor in rounded.state_dict().items()})

    squares = {"shared": 0.0, "separate": 0.0}  # of the relative error: of one sample it is a matter of luck

    @settings(max_examples=20)
    @given(samples=SAMPLES)
    def check(samples: list[Sample]) -> None:
        shared, separate = shared_and_separate(samples)
        loss, _, expected = losses_and_gradients(exact, separate)
        whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for kind, batch in (("shared", shared), ("separate", separate)):
            rounded_loss, _, gradients = losses_and_gradients(rounded, batch)
            errors = [(gradients[name].double() - gradient).norm() for name, gradient in expected.items()]
            squares[kind] += float((torch.stack(errors).norm() / whole) ** 2)
            torch.testing.assert_close(rounded_loss.double(), loss.double(), rtol=0.02, atol=0)

    check()
    assert 0 < squares["shared"] <= 2 * squares["separate"]


@given(samples=SAMPLES)
@settings(max_examples=10)
def test_the_sum_of_a_sample_is_that_of_all_its_branches(samples: list[Sample]) -> None:
    model = model_with(attention="mmca")
    shared, separate = shared_and_separate(samples)
    ours, apart = model(**shared, reduction="sample"), model(**separate, reduction="sample")
    assert ours.per_sample is not None
    counts = [len(sample.branches) for sample in samples]
    expected = [part.sum() for part in apart.per_sample.split(counts)]
    torch.testing.assert_close(ours.per_sample, torch.stack(expected))
    assert ours.per_sample_tokens.tolist() == [int(part.sum()) for part in apart.per_sample_tokens.split(counts)]


def test_a_causal_model_that_expects_no_branches_refuses_them() -> None:
    samples = shared_samples(most_branches=4)
    model = model_batches.make()

    @settings(max_examples=1)
    @given(sample=samples.filter(lambda sample: len(sample.branches) > 1))
    def check(sample: Sample) -> None:
        shared, _ = shared_and_separate([sample])
        with pytest.raises(TrainError, match="samples with branches; call expect_branches"):
            model(**shared)

    check()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt_neo", **model_batches.GPT_NEO}, "attend through transformers' attention interface"),
        ({"model_type": "gemma2", **model_batches.GEMMA2}, "uses softcap, which causal attention with branches"),
        ({"model_type": "doge", **model_batches.DOGE}, "DogeForCausalLM adds to its attention what cannot be done"),
    ],
)
def test_a_decoder_that_cannot_attend_to_branches_is_refused_with_the_reason(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model_with(decoder=DecoderConfig(config=config, attn_implementation="eager"))


def test_a_sliding_window_is_refused_before_weights_are_loaded() -> None:
    decoder = DecoderConfig(config={**PRESETS["tiny_mistral"], "sliding_window": 64})
    config = replace(CONFIG, decoder=decoder)
    assert check_model(config, facts()) == []
    (problem,) = check_model(config, replace(facts(), has_branches=True))
    assert problem.startswith("model.attention: causal attention with branches is not defined for sliding windows")
    assert problem.endswith("or rebuild with limits: {max_length: 64} or without share")


def deep(dtype: torch.dtype) -> VisionChatModel:
    """32 layers: in bf16, two ways to compute the same differ by more than 2% behind them."""
    config = {**PRESETS["tiny_llama"], "num_hidden_layers": 32, "initializer_range": 0.05}
    return model_batches.make(CONFIG, decoder=DecoderConfig(config=config)).to(dtype)


def test_rounding_in_a_deep_decoder_is_not_taken_for_branches_that_see_each_other() -> None:
    deep(torch.bfloat16).expect_branches()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_in_which_a_branch_sees_another_is_refused(dtype: torch.dtype) -> None:
    model = deep(dtype)
    layer: Any = model.decoder.base_model.get_submodule("layers.0")
    layer.register_forward_hook(lambda _, inputs, output: output + 0.1 * output.roll(1, dims=1))
    with pytest.raises(ConfigError, match="lets the branches of a sample see each other; choose another decoder"):
        model.expect_branches()
