"""Whole decoders with MMCA: packed, padded, checkpointed, adapted, each gives what the definition gives."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tests.support import mmca_models, oracles_attention
from tests.support.mmca_cases import interleaved
from tests.support.mmca_models import (
    CONFIGS,
    RENAMED,
    VOCABULARY,
    kinds,
    logits,
    make,
    positions,
    random_ids,
    with_lora,
)
from trainer.attention.layout import build_layout
from trainer.attention.mmca import MMCA
from trainer.compat.transformers import cache_argument, new_cache

one_thread = pytest.fixture(scope="module", autouse=True)(mmca_models.on_one_thread)
no_gradients = pytest.fixture(mmca_models.without_gradients)
model = pytest.fixture(scope="module", params=sorted(mmca_models.CONFIGS))(mmca_models.of_every_kind)


@pytest.mark.usefixtures("no_gradients")
def test_a_whole_model_gives_what_the_definition_gives_in_its_place(model: Any) -> None:
    case = interleaved()
    ids = random_ids(2, 12)

    def slowly(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[torch.Tensor, None]:
        return oracles_attention.mmca(query, key, value, case.is_image, case.segment_ids, scaling), None

    AttentionInterface.register("mmca_defined", slowly)
    AttentionMaskInterface.register("mmca_defined", MMCA.no_mask)
    ours = logits(model, ids, case.is_image, case.segment_ids)
    model.set_attn_implementation("mmca_defined")
    defined = logits(model, ids, case.is_image, case.segment_ids)
    model.set_attn_implementation("mmca")
    torch.testing.assert_close(ours, defined, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("no_gradients")
def test_a_later_token_or_image_changes_no_earlier_logit(model: Any) -> None:
    text = "ttiitttiiittit"
    ids, is_image = random_ids(1, len(text)), kinds(text)
    before = logits(model, ids, is_image)
    for changed in range(len(text)):
        for as_image in (False, True):
            other_ids, other_kinds = ids.clone(), is_image.clone()
            other_ids[0, changed] = 3 + (ids[0, changed] - 2) % (VOCABULARY - 3)
            other_kinds[0, changed] = as_image
            after = logits(model, other_ids, other_kinds)
            torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-12)
            assert not torch.allclose(after[:, changed:], before[:, changed:])


@pytest.mark.usefixtures("no_gradients")
def test_text_alone_gives_the_causal_models_logits(model: Any) -> None:
    ids = random_ids(2, 11)
    ours = logits(model, ids, torch.zeros_like(ids, dtype=torch.bool))
    model.set_attn_implementation("sdpa")
    causal = model(input_ids=ids, use_cache=False).logits
    model.set_attn_implementation("mmca")
    torch.testing.assert_close(ours, causal, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("no_gradients")
def test_packed_and_padded_samples_give_the_logits_they_give_alone(model: Any) -> None:
    samples = ["tiitt", "ttt", "iitit"]
    ids = [random_ids(1, 20)[:, start : start + len(text)] for start, text in zip((0, 6, 12), samples, strict=True)]
    alone = [logits(model, one, kinds(text)) for one, text in zip(ids, samples, strict=True)]

    pad = torch.zeros(1, 2, dtype=torch.int64)
    packed = torch.cat([pad, ids[0], ids[1], pad, ids[2], pad], dim=1)
    segments = torch.tensor([[0, 0, *[1] * 5, *[2] * 3, 0, 0, *[3] * 5, 0, 0]])
    together = logits(model, packed, kinds("tttiitttttttiitittt"), segments)
    for number, expected in enumerate(alone, start=1):
        torch.testing.assert_close(together[segments == number], expected[0], rtol=0, atol=1e-12)
    assert together.isfinite().all()

    left_then_right = torch.cat([torch.cat([pad, ids[1]], dim=1), torch.cat([ids[1], pad], dim=1)])
    segments = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    padded = logits(model, left_then_right, kinds("ttttt", "ttttt"), segments)
    for row in (0, 1):
        torch.testing.assert_close(padded[row][segments[row] == 1], alone[1][0], rtol=0, atol=1e-12)


def parameter_gradients(model: Any) -> dict[str, torch.Tensor]:
    case = interleaved()
    ids = random_ids(2, 12)
    actual = model(
        input_ids=ids,
        position_ids=positions(case.segment_ids),
        labels=ids.where(case.segment_ids != 0, -100),
        attention_layout=build_layout(case.is_image, case.segment_ids),
        use_cache=False,
    )
    actual.loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@RENAMED
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_gradient_checkpointing_gives_equal_gradients(name: str) -> None:
    plain = parameter_gradients(make(name).train())
    assert any("q_proj" in parameter for parameter in plain)
    for reentrant in (False, True):
        model = make(name).train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        checkpointed = parameter_gradients(model)
        assert checkpointed.keys() == plain.keys()
        for parameter, expected in plain.items():
            torch.testing.assert_close(checkpointed[parameter], expected, rtol=0, atol=1e-12)


@RENAMED
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_lora_trains_through_it_and_merges_into_the_same_model(name: str) -> None:
    model = with_lora(name)
    assert all("lora" in parameter for parameter in parameter_gradients(model))
    case, ids = interleaved(), random_ids(2, 12)
    with torch.no_grad():
        apart = logits(model, ids, case.is_image, case.segment_ids)
        merged = logits(model.merge_and_unload(), ids, case.is_image, case.segment_ids)
    torch.testing.assert_close(merged, apart, rtol=0, atol=1e-10)


def test_a_forward_without_a_fitting_layout_is_refused() -> None:
    model, ids = make("llama"), random_ids(1, 4)
    with pytest.raises(ValueError, match="without a layout; pass model"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="got 1 rows, 4 queries and 4 keys, but its layout is for 1 rows, 5 queries"):
        model(input_ids=ids, attention_layout=build_layout(kinds("ttttt")))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"sliding_window": 5}),
        ("qwen2", {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]}),
        ("qwen3", {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"]}),
    ],
)
def test_a_sample_longer_than_a_sliding_window_is_refused_and_a_shorter_one_unchanged(
    name: str, changes: dict[str, Any]
) -> None:
    model, whole = make(name, **changes), make(name)
    ids, is_image = random_ids(1, 10), kinds("tittttiitt")
    with pytest.raises(ValueError, match="sliding window is 5 tokens, but a sample spans 10"):
        logits(model, ids, is_image)
    halves = torch.tensor([[1] * 5 + [2] * 5])
    with torch.no_grad():
        windowed, expected = (logits(one, ids, is_image, halves) for one in (model, whole))
    torch.testing.assert_close(windowed, expected, rtol=0, atol=1e-12)
    cache = {cache_argument(): new_cache(model.config)}
    model(input_ids=ids[:, :3], attention_layout=build_layout(is_image[:, :3]), **cache)
    with pytest.raises(ValueError, match=r"sliding window|but its layout is for"):
        model(input_ids=ids[:, 3:], attention_layout=build_layout(is_image, num_queries=7), **cache)
