"""The model: images in their places, samples apart, and a loss that is computed where something is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.loader import normalize
from shards.loader.fields import BatchFields
from tests.support import model_batches
from tests.support.model_batches import (
    CONFIG,
    ENCODER,
    IMAGE,
    IMAGE_IDS,
    IMAGE_TOKENS,
    SAMPLES,
    SIDE,
    layout,
    random_images,
)
from trainer.config.model import (
    DecoderConfig,
)
from trainer.errors import TrainError
from trainer.model import vision_chat as model_module
from trainer.model.build_model import build_model
from trainer.model.decoder import PRESETS
from trainer.model.vision_chat import VisionChatModel

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


@pytest.fixture(scope="module")
def causal() -> VisionChatModel:
    return model_batches.make()


def image_counts(sequences: list[list[list[int]]]) -> list[int]:
    return [sample.count(IMAGE) // IMAGE_TOKENS for sequence in sequences for sample in sequence]


def attend_by(kernel: str, preset: str) -> VisionChatModel:
    if kernel == "mmca":
        return model_batches.make(decoder=DecoderConfig(preset=preset), attention="mmca")
    return model_batches.make(decoder=DecoderConfig(preset=preset, attn_implementation=kernel))  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "mmca"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_packed_sample_is_as_if_alone(preset: str, kernel: str) -> None:
    model = attend_by(kernel, preset)
    first, second, third = SAMPLES
    sequences = [[first, second, third], [third], [second, second, first]]
    counts = image_counts(sequences)
    images = random_images(sum(counts))
    inputs = layout(sequences, 30)
    out = model(**inputs, images=images, reduction="sample")
    logits = model.logits(BatchFields(**inputs, images=images))
    # transformers' eager attention takes its softmax in float32
    rtol, atol = (1e-3, 1e-5) if kernel == "eager" else (1e-7, 1e-9)
    number = 0
    for row, samples in enumerate(sequences):
        start = 0
        for sample in samples:
            seen = images[sum(counts[:number]) : sum(counts[: number + 1])]
            alone = layout([[sample]])
            loss = model(**alone, images=seen)
            torch.testing.assert_close(out.per_sample[number], loss.total)
            assert out.per_sample_tokens[number] == loss.tokens
            expected = model.logits(BatchFields(**alone, images=seen))[0]
            torch.testing.assert_close(logits[row, start : start + len(sample)], expected, rtol=rtol, atol=atol)
            start += len(sample)
            number += 1
    torch.testing.assert_close(out.total, out.per_sample.sum())
    assert out.tokens == out.per_sample_tokens.sum()


@pytest.mark.parametrize("sliding_window", [None, 5])
def test_windows_of_a_decoder_count_within_its_sample(sliding_window: int | None) -> None:
    config = {**PRESETS["tiny_mistral"], "sliding_window": sliding_window}
    model = model_batches.make(decoder=DecoderConfig(config=config))
    sample = list(range(2, 14))
    both = layout([[[1, 20, 21], sample]])
    alone = layout([[sample]])
    none = random_images(0)
    torch.testing.assert_close(
        model.logits(BatchFields(**both, images=none))[0, 3:], model.logits(BatchFields(**alone, images=none))[0]
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_loss_of_a_text_is_transformers_own(preset: str) -> None:
    model = model_batches.make(decoder=DecoderConfig(preset=preset))
    inputs = layout([[[3, 7, 1, 9, 30, 4]]])
    inputs["labels"][0, 3] = -100
    loss = model(**inputs, images=random_images(0))
    decoder: Any = model.decoder
    expected = decoder(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss
    assert loss.tokens == 4
    torch.testing.assert_close(loss.total / loss.tokens, expected.float())


def test_the_loss_with_images_is_transformers_own_of_the_same_embeddings(causal: VisionChatModel) -> None:
    inputs = layout([[SAMPLES[2]]])
    images = random_images(2)
    embeddings = by_hand(causal, inputs, images)
    decoder: Any = causal.decoder
    expected = decoder(inputs_embeds=embeddings, labels=inputs["labels"]).loss
    loss = causal(**inputs, images=images)
    torch.testing.assert_close(loss.total / loss.tokens, expected.float())


def by_hand(model: VisionChatModel, inputs: dict[str, torch.Tensor], images: torch.Tensor) -> Any:
    """Embeddings, written one position after the other."""
    embeddings = model.decoder.get_input_embeddings()(inputs["input_ids"]).clone()
    encoder = model.encoder
    for number, (row, first) in enumerate(inputs["image_slots"].tolist()):
        pixels = normalize(images[number : number + 1], encoder.mean, encoder.std, torch.float64)
        for offset, feature in enumerate(model.projector(encoder(pixels))[0]):
            embeddings[row, first + offset] = feature
    return embeddings


texts = st.lists(st.integers(0, IMAGE - 1), min_size=1, max_size=4)
samples = st.lists(texts | st.just(IMAGE_IDS), min_size=1, max_size=4).map(
    lambda parts: [0, *(token for part in parts for token in part)]
)


@given(sequences=st.lists(st.lists(samples, min_size=1, max_size=3), min_size=1, max_size=3), spare=st.integers(0, 3))
@settings(max_examples=25)
def test_images_land_in_their_places(causal: VisionChatModel, sequences: list[list[list[int]]], spare: int) -> None:
    inputs = layout(sequences, max(sum(map(len, sequence)) for sequence in sequences) + spare)
    images = random_images(len(inputs["image_slots"]))
    actual = causal.embed(inputs["input_ids"], images, inputs["image_slots"])
    torch.testing.assert_close(actual, by_hand(causal, inputs, images))


def test_the_order_of_slots_is_the_order_of_images(causal: VisionChatModel) -> None:
    inputs, images = layout([SAMPLES]), random_images(3)
    turned = {**inputs, "image_slots": inputs["image_slots"].flip(0)}
    torch.testing.assert_close(causal(**inputs, images=images).total, causal(**turned, images=images.flip(0)).total)
    assert not torch.allclose(causal(**inputs, images=images).total, causal(**inputs, images=images.flip(0)).total)


@pytest.mark.parametrize("change", ["one image less", "no slot", "past the end", "next to the placeholder", "small"])
def test_images_and_places_that_do_not_fit_are_refused(change: str, causal: VisionChatModel) -> None:
    inputs, images = layout([SAMPLES]), random_images(3)
    slots = inputs["image_slots"]
    if change == "one image less":
        images = images[:2]
    elif change == "no slot":
        inputs["image_slots"], images = slots[:2], images[:2]
    elif change == "past the end":
        slots[2, 1] = inputs["input_ids"].shape[1] - 1
    elif change == "next to the placeholder":
        slots[0, 1] += 1
    else:
        images = images[:, :, :14, :14]
    with pytest.raises(TrainError, match="the encoder takes" if change == "small" else "expected the build"):
        causal(**inputs, images=images)


def test_logits_are_computed_where_the_next_token_is_trained_and_nowhere_else(
    causal: VisionChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    hook = causal.decoder.get_output_embeddings().register_forward_hook(lambda _, __, out: counts.append(len(out)))
    inputs, images = layout([SAMPLES] * 2, 64), random_images(6)
    with torch.no_grad():
        loss = causal(**inputs, images=images)
        assert sum(counts) == loss.tokens == 2 * (4 + 2 + 3)
        counts.clear()
        monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", 5 * model_batches.VOCABULARY)
        chunked = causal(**inputs, images=images)
    hook.remove()
    assert len(counts) == 4
    assert max(counts) <= 5
    torch.testing.assert_close(chunked.total, loss.total)


def test_chunks_give_the_same_gradients(causal: VisionChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, images = layout([SAMPLES]), random_images(3)
    actual = []
    for at_once in (2**27, 2 * model_batches.VOCABULARY):
        monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", at_once)
        causal.zero_grad()
        causal(**inputs, images=images).total.backward()
        actual.append({name: p.grad.clone() for name, p in causal.named_parameters() if p.grad is not None})
    assert actual[0].keys() == actual[1].keys()
    for name, gradient in actual[0].items():
        torch.testing.assert_close(actual[1][name], gradient, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("attention", ["causal", "mmca"])
def test_text_alone_runs_every_part_and_teaches_the_encoder_nothing(attention: Any) -> None:
    model = model_batches.make(attention=attention).train()
    calls: list[str] = []
    model.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    model.projector.register_forward_hook(lambda *_: calls.append("projector"))
    inputs = layout([[[3, 7, 1, 9]], [[2, 5]]])
    loss = model(**inputs, images=random_images(0))
    loss.total.backward()
    assert calls == ["encoder", "projector"]
    expected = model.decoder.eval()
    assert loss.total.isfinite()
    assert expected is model.decoder
    for part in (model.encoder, model.projector):
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        assert gradients
        assert not any(gradient.any() for gradient in gradients)


def test_a_batch_with_nothing_to_learn_has_no_loss_and_no_gradient(causal: VisionChatModel) -> None:
    inputs = layout([[SAMPLES[0]]])
    inputs["labels"][:] = -100
    loss = causal(**inputs, images=random_images(1), reduction="sample")
    assert (loss.total.item(), loss.tokens.item(), loss.per_sample.tolist()) == (0.0, 0, [0.0])
    loss.total.backward()


def test_sequences_of_padding_alone_count_no_sample(causal: VisionChatModel) -> None:
    loss = causal(**layout([[], [SAMPLES[1]], []], 8), images=random_images(0), reduction="sample")
    assert loss.per_sample_tokens.tolist() == [2]


@pytest.mark.parametrize("attention", ["causal", "mmca"])
def test_recomputed_activations_change_no_gradient(attention: Any) -> None:
    inputs, images = layout([SAMPLES]), random_images(3)
    actual = []
    for again in (False, True):
        model = model_batches.make(attention=attention).train()
        if again:
            model.checkpoint_activations()
        model(**inputs, images=images).total.backward()
        actual.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert actual[0].keys() == actual[1].keys()
    for name, gradient in actual[0].items():
        torch.testing.assert_close(actual[1][name], gradient, msg=name)


def test_pixels_are_normalised_by_the_encoders_own_numbers() -> None:
    config = replace(ENCODER, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model = model_batches.make(encoder=config)
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    white = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    model.encode(white)
    expected = torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7]).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)
    torch.testing.assert_close(seen[0].float(), expected)


def test_half_precision_runs_and_sums_in_float32() -> None:
    model = build_model(CONFIG, model_batches.facts(), dtype=torch.bfloat16)
    loss = model(**layout([SAMPLES]), images=random_images(3))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert loss.total.dtype == torch.float32
