"""Models as their config builds them: the same for the same seed, and all that does not fit the build is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from tests.support import model_batches
from tests.support.model_batches import (
    CONFIG,
    IMAGE_TOKENS,
    SAMPLES,
    SIDE,
    layout,
    random_images,
)
from trainer.config.model import (
    DecoderConfig,
    ProjectorConfig,
)
from trainer.model.build_model import build_model, check_model, portable_config
from trainer.model.decoder import PRESETS

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


def test_a_model_is_the_same_for_the_same_seed_whatever_was_drawn_before() -> None:
    facts = model_batches.facts()
    first = build_model(CONFIG, facts, seed=3)
    torch.randn(10)
    state = torch.random.get_rng_state()
    other, third = build_model(CONFIG, facts, seed=3), build_model(CONFIG, facts, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert not torch.equal(
        first.projector.get_parameter("linear_1.weight"), third.projector.get_parameter("linear_1.weight")
    )


@pytest.mark.parametrize("attention", ["causal", "mmca"])
def test_a_portable_config_builds_the_same_architecture(attention: Any) -> None:
    model = model_batches.make(attention=attention)
    config = portable_config(replace(CONFIG, attention=attention), model)
    again = build_model(config, model_batches.facts(), weights=False, dtype=torch.float64).eval()
    again.load_state_dict(model.state_dict())
    inputs = layout([SAMPLES])
    assert torch.equal(again(**inputs, images=random_images(3)).total, model(**inputs, images=random_images(3)).total)


def test_all_that_does_not_fit_the_build_is_reported_at_once() -> None:
    facts = model_batches.facts(image_size=56, image_tokens=9, max_length=9000)
    text = "\n".join(check_model(CONFIG, facts))
    for part in (
        "model.decoder: allows 8192 positions but this build has samples of up to 9000",
        f"model.encoder: takes images of {SIDE} pixels but this build's have 56",
        f"model.projector: makes {IMAGE_TOKENS} tokens per image but this build was compiled with 9",
    ):
        assert part in text


@pytest.mark.parametrize(("window", "layers", "fits"), [(64, None, False), (65, None, True), (64, "full", True)])
def test_samples_longer_than_a_sliding_window_are_refused_before_mmca_meets_them(
    window: int, layers: str | None, fits: bool
) -> None:
    kind, more = ("mistral", {}) if layers is None else ("qwen2", {"layer_types": ["full_attention"] * 2})
    decoder = DecoderConfig(config={**PRESETS[f"tiny_{kind}"], "sliding_window": window, **more})
    facts = model_batches.facts(max_length=65)
    actual = check_model(replace(CONFIG, decoder=decoder, attention="mmca"), facts)
    assert not check_model(replace(CONFIG, decoder=decoder, attention="causal"), facts)
    assert [problem.partition(";")[0] for problem in actual] == (
        [] if fits else ["model.attention: mmca is not defined for sliding windows"]
    )


def test_a_perceiver_makes_as_many_tokens_as_the_build_wants() -> None:
    perceiver = ProjectorConfig(kind="perceiver", num_queries=7, num_heads=2)
    config = replace(CONFIG, projector=perceiver)
    assert not check_model(config, model_batches.facts(image_tokens=7))
    problems = check_model(config, model_batches.facts(image_tokens=8))
    assert "set model.projector.num_queries: 8" in problems[0]
