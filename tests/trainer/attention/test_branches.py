"""Attention of samples with branches equals its definition: a branch sees its beginning and itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.support import mmca_models
from tests.support.mmca_cases import Case, assert_as_defined, branched_cases
from trainer.attention import branches as branches_module
from trainer.attention import flex as flex_module
from trainer.attention.flex import block_tables
from trainer.attention.layout import TextRows, build_layout
from trainer.compat.flash_attention import flash_attention

one_thread = pytest.fixture(scope="module", autouse=True)(mmca_models.on_one_thread)


@given(case=branched_cases())
def test_outputs_and_gradients_are_those_of_the_definition(case: Case) -> None:
    assert_as_defined(case)


@given(case=branched_cases())
def test_where_no_flash_kernel_fits_masks_of_single_branches_give_the_same(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches_module, "has_flash_attention", lambda *tensors: False)
        assert_as_defined(case)


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")  # compiling it takes a compiler
@given(case=branched_cases())
def test_flex_attention_gives_the_same_outputs(case: Case) -> None:
    query, key, value = (x.detach() for x in (case.query, case.key, case.value))  # on a CPU it has no backward pass
    flexible = replace(case, query=query, key=key, value=value, flex=True)
    torch.testing.assert_close(flexible.ours(), flexible.defined(), rtol=0, atol=1e-10)


@given(case=branched_cases(dtype=torch.float32), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_lower_precision_stays_near_the_definition(case: Case, dtype: torch.dtype) -> None:
    query, key, value = (x.detach().to(dtype) for x in (case.query, case.key, case.value))
    rounded = replace(case, query=query, key=key, value=value)
    ours = rounded.ours()
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.double(), rounded.defined(), rtol=tolerance, atol=tolerance)


def shared_question(num_branches: int = 3) -> Case:
    """A sequence of one sample: two tokens of text, an image of two, and branches of two tokens each."""
    torch.manual_seed(1)
    branch_ids = torch.tensor([[0] * 4 + [branch for branch in range(1, num_branches + 1) for _ in range(2)]])
    query, key, value = (torch.randn(1, heads, branch_ids.shape[1], 4, dtype=torch.float64) for heads in (4, 2, 2))
    is_image = torch.zeros_like(branch_ids).bool()
    is_image[0, 2:4] = True
    return Case(query, key, value, is_image, torch.ones_like(branch_ids), branch_ids)


def test_no_kernel_gets_a_mask_and_all_branches_attend_to_the_beginning_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes: list[tuple[int, int, bool]] = []
    masks: list[object] = []
    public, private = functional.scaled_dot_product_attention, flash_attention

    def watch_public(*arguments: Any, **options: Any) -> torch.Tensor:
        masks.append(options["attn_mask"])
        return public(*arguments, **options)

    def watch_private(*arguments: Any, **options: Any) -> Any:
        shapes.append((arguments[0].shape[2], arguments[1].shape[2], options["is_causal"]))
        return private(*arguments, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch_public)
    monkeypatch.setattr(branches_module, "flash_attention", watch_private)
    shared_question().ours()
    assert masks == [None, None], "the beginning over itself, and all branches over the image"
    assert shapes == [(2, 2, True)] * 3 + [(6, 2, False)]


def test_dropout_drops_every_weight_of_branches_too() -> None:
    case = shared_question()
    assert not case.ours(dropout=1.0)[~case.is_image].any()
    kept = torch.stack([case.ours(dropout=0.5)[0, 4:] for _ in range(400)]).mean(0)
    torch.testing.assert_close(kept, case.defined()[0, 4:], rtol=0, atol=0.35)


def test_a_sample_spans_its_beginning_and_its_longest_branch() -> None:
    assert shared_question(9).layout.longest_sample == 6


@pytest.mark.parametrize(
    ("is_image", "branch_ids", "num_queries", "message"),
    [
        ([0, 1, 0, 0], [0, 0, 2, 1], 4, "not 0, 1, 2, ... in order"),
        ([0, 1, 0, 0], [0, 0, 2, 2], 4, "not 0, 1, 2, ... in order"),
        ([0, 0, 0, 0], [1, 1, 2, 2], 4, "expected a beginning"),
        ([0, 0, 1, 0], [0, 0, 1, 2], 4, "show images"),
        ([0, 0, 0, 0], [0, 0, 1, 2], 2, "2 queries of 4 keys with branches; expected no KV cache"),
        ([0, 0, 0, 0], [0, 0, 1], 4, "branch_ids is torch.int64"),
    ],
)
def test_branches_that_are_not_in_order_or_cannot_be_attended_to_are_refused(
    is_image: list[int], branch_ids: list[int], num_queries: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_layout(
            torch.tensor([is_image]).bool(), None, torch.tensor([branch_ids]), num_queries=num_queries, flex=False
        )


@given(case=branched_cases(), block=st.integers(1, 4))
def test_the_blocks_of_flex_attention_cover_all_that_may_be_seen(case: Case, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_module, "BLOCK", block)
        plan = case.layout.plan
        assert isinstance(plan, TextRows)
        text, image = block_tables(plan.samples)
    sample, branch, seen, image_sample, image_number = (list[int]() for _ in range(5))
    for number, rows in enumerate(plan.samples):
        sample += [number] * rows.queries
        branch += [index for index, count in enumerate(rows.parts) for _ in range(count)]
        seen += [run.image_keys for run in rows.runs for _ in range(run.queries)]
        image_sample += [number] * rows.image_keys
        image_number += range(rows.image_keys)
    for query, (own, number) in enumerate(zip(sample, branch, strict=True)):
        for key in range(query + 1):
            if sample[key] == own and branch[key] in (0, number):
                assert text[query // block, key // block]
        for key, (other, index) in enumerate(zip(image_sample, image_number, strict=True)):
            if other == own and index < seen[query]:
                assert image[query // block, key // block]
    assert not np.triu(text, 1).any()


def test_blocks_between_two_long_branches_are_left_out() -> None:
    rows = shared_question().layout.plan
    assert isinstance(rows, TextRows)
    (sample,) = rows.samples
    long = replace(sample, queries=1024, text_keys=1024, branches=(256, 256, 256))
    text, _ = block_tables([long])
    assert text.tolist() == [
        [True, False, False, False, False, False, False, False],
        [True, True, False, False, False, False, False, False],
        [True, True, True, False, False, False, False, False],
        [True, True, True, True, False, False, False, False],
        [True, True, False, False, True, False, False, False],
        [True, True, False, False, True, True, False, False],
        [True, True, False, False, False, False, True, False],
        [True, True, False, False, False, False, True, True],
    ]


def test_the_masks_of_flex_attention_move_with_their_layout() -> None:
    layout = replace(shared_question(), flex=True).layout.to("meta")
    assert isinstance(layout.plan, TextRows)
    masks = layout.plan.block_masks
    assert masks is not None
    assert masks.image is not None
    parts = (masks.keys, masks.text.kv_indices, masks.image.kv_indices)
    assert {part.device.type for part in parts} == {"meta"}
