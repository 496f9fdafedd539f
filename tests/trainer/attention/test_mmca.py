"""Multi-modal causal attention of one layer equals its definition."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaConfig

from tests.support import mmca_models
from tests.support.mmca_cases import Case, assert_as_defined, cases, interleaved
from tests.support.mmca_models import SIZES
from trainer.attention import layout as attention_layout
from trainer.attention.layout import StepMasks, TextRows, build_layout
from trainer.attention.mmca import MMCA

one_thread = pytest.fixture(scope="module", autouse=True)(mmca_models.on_one_thread)


@given(case=cases())
def test_outputs_and_gradients_are_those_of_the_definition(case: Case) -> None:
    assert isinstance(case.layout.plan, TextRows)
    assert_as_defined(case)


@given(case=cases(cached=True), masked_queries=st.sampled_from([0, 16]))
def test_new_tokens_against_cached_keys_are_as_defined_in_both_forms(case: Case, masked_queries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_layout, "MASKED_QUERIES", masked_queries)
        assert isinstance(case.layout.plan, StepMasks if masked_queries else TextRows)
        assert_as_defined(case)


@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_lower_precision_stays_near_the_definition(case: Case, dtype: torch.dtype) -> None:
    query, key, value = (x.detach().to(dtype) for x in (case.query, case.key, case.value))
    rounded = Case(query, key, value, case.is_image, case.segment_ids)
    ours = rounded.ours()
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.double(), rounded.defined(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_queries", [12, 4])
def test_an_image_or_padding_row_gives_its_value_bit_for_bit(num_queries: int) -> None:
    case = interleaved(num_queries)
    own = case.value[:, :, -num_queries:].transpose(1, 2).repeat_interleave(2, dim=2)
    alone = (case.is_image | (case.segment_ids == 0))[:, -num_queries:]
    ours = case.ours()
    assert alone.any()
    assert torch.equal(ours[alone], own[alone])


def test_rows_of_nothing_but_images_and_padding_give_their_values() -> None:
    case = interleaved()
    images = Case(case.query, case.key, case.value, torch.ones_like(case.is_image), case.segment_ids)
    assert torch.equal(images.ours(), case.value.transpose(1, 2).repeat_interleave(2, dim=2))


def test_training_gives_no_kernel_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    original = functional.scaled_dot_product_attention

    def watch(*arguments: Any, **options: Any) -> torch.Tensor:
        masks.append(options["attn_mask"])
        return original(*arguments, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch)
    interleaved().ours()
    assert masks == [None] * len(masks)
    assert len(masks) == 3 + 6  # a causal one for each sample, another for each run of text after an image


def test_dropout_drops_and_scales_the_weights_of_text_rows_alone() -> None:
    case = interleaved()
    asks = ~case.is_image & (case.segment_ids != 0)
    own = case.value.transpose(1, 2).repeat_interleave(2, dim=2)
    nothing = case.ours(dropout=1.0)
    assert torch.equal(nothing[~asks], own[~asks])
    assert not nothing[asks].any()
    torch.manual_seed(0)
    firsts = torch.stack([case.ours(dropout=0.75)[0, 0] for _ in range(30)])  # it sees one key, itself
    dropped = (firsts == 0).all(-1)
    torch.testing.assert_close(firsts[~dropped], (4 * own[0, 0]).expand_as(firsts)[~dropped])
    assert 0.6 < dropped.double().mean() < 0.9

    last = interleaved(4)
    assert not last.ours(dropout=1.0)[asks[:, -4:]].any()


def test_a_layout_moves_with_all_its_tensors() -> None:
    for num_queries in (12, 4):
        plan = interleaved(num_queries).layout.to("meta").plan
        parts = [plan.text, plan.image] if isinstance(plan, StepMasks) else [plan.queries, plan.keys]
        assert {part.device.type for part in parts} == {"meta"}
    case = interleaved()
    cached = build_layout(case.is_image.repeat(1, 4), num_queries=40).to("meta").plan
    assert isinstance(cached, TextRows)
    assert {sample.mask.device.type for sample in cached.samples if sample.mask is not None} == {"meta"}


@pytest.mark.parametrize(
    ("is_image", "segment_ids", "num_queries", "message"),
    [
        (torch.zeros(1, 3), None, None, "is_image is torch.float32"),
        (torch.zeros(3, dtype=torch.bool), None, None, "expected torch.bool"),
        (torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.int64), None, "segment_ids is torch.int64"),
        (torch.zeros(1, 3, dtype=torch.bool), None, 4, "num_queries is 4; expected 1 to 3"),
        (torch.zeros(1, 3, dtype=torch.bool), None, 0, "num_queries is 0; expected 1 to 3"),
    ],
)
def test_a_layout_of_the_wrong_shape_says_what_was_expected(
    is_image: torch.Tensor, segment_ids: torch.Tensor | None, num_queries: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_layout(is_image, segment_ids, num_queries=num_queries)


@pytest.mark.parametrize("extra", ["softcap", "s_aux", "position_bias"])
def test_attention_that_is_not_defined_is_refused(extra: str) -> None:
    with pytest.raises(ValueError, match=f"uses {extra}"):
        interleaved().ours(**{extra: 1.0})


def test_chunked_attention_is_refused_where_it_would_cut() -> None:
    config = LlamaConfig(**SIZES)
    MMCA.no_mask(kv_length=8, local_size=8, config=config)
    with pytest.raises(ValueError, match="chunks of 8 tokens"):
        MMCA.no_mask(kv_length=9, local_size=8, config=config)
