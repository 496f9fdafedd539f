"""MMCA with a KV cache gives what whole sequences give without one."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from torch.nn import functional

from tests.support import mmca_models
from tests.support.mmca_models import RENAMED, kinds, logits, make, random_ids, with_lora
from trainer.attention.layout import build_layout
from trainer.compat.transformers import cache_argument, new_cache

one_thread = pytest.fixture(scope="module", autouse=True)(mmca_models.on_one_thread)
no_gradients = pytest.fixture(mmca_models.without_gradients)
model = pytest.fixture(scope="module", params=sorted(mmca_models.CONFIGS))(mmca_models.of_every_kind)

NEW_TOKENS = 6
CACHE = cache_argument()


class CachedSequences:
    """Rows that a model reads piece by piece: its KV cache, and which of the tokens in it are images or padding."""

    def __init__(self, model: Any, num_rows: int) -> None:
        self.model, self.cache = model, new_cache(model.config)
        self.is_image = torch.zeros(num_rows, 0, dtype=torch.bool)
        self.mask = torch.zeros(num_rows, 0, dtype=torch.int64)

    def read(
        self,
        ids: torch.Tensor,
        is_image: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        as_embeddings: bool = False,
    ) -> torch.Tensor:
        """The logits of the piece's last token; `mask` is 0 where the piece is padding."""
        self.is_image = torch.cat([self.is_image, is_image], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(ids) if mask is None else mask], dim=1)
        tokens = {"inputs_embeds": self.model.get_input_embeddings()(ids)} if as_embeddings else {"input_ids": ids}
        num_new = ids.shape[1]
        actual: torch.Tensor = self.model(
            **tokens,
            position_ids=(self.mask.cumsum(1) - 1).clamp(min=0)[:, -num_new:],
            attention_layout=build_layout(self.is_image, self.mask, num_queries=num_new),
            use_cache=True,
            **{CACHE: self.cache},
        ).logits
        return actual[:, -1]

    def answer(self, last: torch.Tensor) -> torch.Tensor:
        """The logits of new tokens, the likeliest each; `last`: those before the first. All but the last are read."""
        steps = [last]
        while len(steps) < NEW_TOKENS:
            steps.append(self.read(token := steps[-1].argmax(-1, keepdim=True), torch.zeros_like(token).bool()))
        return torch.stack(steps, dim=1)


def without_cache(model: Any, ids: torch.Tensor, is_image: torch.Tensor) -> torch.Tensor:
    """One sequence without padding: every step computes all of it again. Gives the new tokens' logits."""
    steps = []
    for _ in range(NEW_TOKENS):
        last = logits(model, ids, is_image)[:, -1]
        steps.append(last)
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
        is_image = functional.pad(is_image, (0, 1))
    return torch.stack(steps, dim=1)


@pytest.mark.usefixtures("no_gradients")
def test_a_batch_of_padded_prompts_is_answered_as_each_prompt_is_without_a_cache(model: Any) -> None:
    prompts = ["tiitttiit", "ttt", "itiiit"]
    ids = [random_ids(1, 30)[:, 10 * n : 10 * n + len(text)] for n, text in enumerate(prompts)]
    width = max(map(len, prompts))
    cached = CachedSequences(model, len(prompts))
    last = cached.read(
        torch.cat([functional.pad(one, (width - one.shape[1], 0)) for one in ids]),
        kinds(*(text.rjust(width, "t") for text in prompts)),
        torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in prompts]),
    )
    expected = torch.cat([without_cache(model, one, kinds(text)) for one, text in zip(ids, prompts, strict=True)])
    torch.testing.assert_close(cached.answer(last), expected)


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize(
    ("new_round", "as_embeddings"),
    [pytest.param("ttiiit", False, id="by masks"), pytest.param("t" + "i" * 20 + "tiitt", True, id="gathered")],
)
def test_a_later_round_with_a_new_image_continues_from_the_cache(
    model: Any, new_round: str, as_embeddings: bool
) -> None:
    cached = CachedSequences(model, 1)
    new_ids, new_kinds = random_ids(1, 7), kinds("tiittit")
    ids, is_image = new_ids, new_kinds
    for _ in range(3):
        answer = cached.answer(cached.read(new_ids, new_kinds, as_embeddings=as_embeddings))
        expected = without_cache(model, ids, is_image)
        torch.testing.assert_close(answer, expected)
        said = expected.argmax(-1)
        new_ids = torch.cat([said[:, -1:], random_ids(1, len(new_round))], dim=1)
        new_kinds = kinds("t" + new_round)
        ids = torch.cat([ids, said[:, :-1], new_ids], dim=1)
        is_image = torch.cat([is_image, kinds("t" * (NEW_TOKENS - 1)), new_kinds], dim=1)


@pytest.mark.usefixtures("no_gradients")
def test_later_rounds_of_a_batch_never_see_the_padding_between_them() -> None:
    model = make("llama")
    ids = random_ids(2, 40)
    cached = CachedSequences(model, 2)
    first = cached.answer(
        cached.read(ids[:, :5], kinds("tiitt", "ttttt"), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]))
    )
    said = first.argmax(-1)
    new_ids = torch.cat([said[:, -1:], ids[:, 5:9]], dim=1)
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    second = cached.answer(cached.read(new_ids, kinds("tttit", "tiitt"), mask))
    width = 5 + NEW_TOKENS + 4
    both, is_image = torch.cat([ids[:, :5], said[:, :-1], new_ids], dim=1), cached.is_image[:, :width]
    real = cached.mask[:, :width] == 1
    alone = [(both[row : row + 1, real[row]], is_image[row : row + 1, real[row]]) for row in range(2)]
    torch.testing.assert_close(second, torch.cat([without_cache(model, *one) for one in alone]))


@RENAMED
@pytest.mark.usefixtures("no_gradients")
def test_adapters_of_lora_answer_from_the_cache() -> None:
    model = with_lora("llama")
    ids, is_image = random_ids(2, 7), kinds("tiittit", "ttttiit")
    cached = CachedSequences(model, 2)
    torch.testing.assert_close(cached.answer(cached.read(ids, is_image)), without_cache(model, ids, is_image))


def test_the_generate_of_transformers_is_refused_since_it_passes_no_layout() -> None:
    model, ids = make("llama"), random_ids(1, 4)
    with pytest.raises(ValueError, match=r"without a layout.*generate\(\) passes none.*trainer.inference.generate"):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
