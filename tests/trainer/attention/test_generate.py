"""`generate` with MMCA gives, from its cache, what whole rows give without one."""

# ruff: noqa: E402 - torch and transformers may be missing, and torchvision is mended before they look at it

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
from trainer.compat.torchvision import declare_operators

declare_operators()
pytest.importorskip("transformers")

import torch
from torch.nn import functional
from transformers import DynamicCache

from tests.support import mmca_models
from tests.support.mmca_models import RENAMED, kinds, logits, make, random_ids, with_lora
from trainer.compat.transformers import cache_argument

one_thread = pytest.fixture(scope="module", autouse=True)(mmca_models.on_one_thread)
no_gradients = pytest.fixture(mmca_models.without_gradients)
model = pytest.fixture(scope="module", params=sorted(mmca_models.CONFIGS))(mmca_models.of_every_kind)

NEW_TOKENS = 6
CACHE = cache_argument()


def assert_same_logits(found: tuple[torch.Tensor, ...], wanted: torch.Tensor) -> None:
    """`generate` rounds the logits of its steps to fp32."""
    torch.testing.assert_close(torch.stack(found, dim=1), wanted.float())


def greedy_without_cache(model: Any, ids: torch.Tensor, is_image: torch.Tensor) -> torch.Tensor:
    """One conversation, no padding: every step runs the whole row again. Gives the new tokens' logits."""
    steps = []
    for _ in range(NEW_TOKENS):
        last = logits(model, ids, is_image)[:, -1]
        steps.append(last)
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
        is_image = functional.pad(is_image, (0, 1))
    return torch.stack(steps, dim=1)


def generate(model: Any, **inputs: Any) -> Any:
    found = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert len(found.logits) == NEW_TOKENS
    return found


@pytest.mark.usefixtures("no_gradients")
def test_a_batch_of_padded_prompts_generates_what_each_prompt_does_without_a_cache(model: Any) -> None:
    prompts = ["tiitttiit", "ttt", "itiiit"]
    ids = [random_ids(1, 30)[:, 10 * n : 10 * n + len(text)] for n, text in enumerate(prompts)]
    width = max(map(len, prompts))
    inputs = {
        "input_ids": torch.cat([functional.pad(one, (width - one.shape[1], 0)) for one in ids]),
        "attention_mask": torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in prompts]),
        "is_image": kinds(*(text.rjust(width, "t") for text in prompts)),
    }
    wanted = torch.cat([greedy_without_cache(model, one, kinds(text)) for one, text in zip(ids, prompts, strict=True)])
    assert_same_logits(generate(model, **inputs).logits, wanted)
    assert_same_logits(generate(model, **inputs, use_cache=False).logits, wanted)


@pytest.mark.usefixtures("no_gradients")
@pytest.mark.parametrize(
    ("new_round", "as_embeddings"),
    [pytest.param("ttiiit", False, id="by masks"), pytest.param("t" + "i" * 20 + "tiitt", True, id="gathered")],
)
def test_a_later_round_with_a_new_image_goes_on_from_the_cache(model: Any, new_round: str, as_embeddings: bool) -> None:
    text = "tiittit"
    ids, is_image = random_ids(1, len(text)), kinds(text)
    cache = DynamicCache(config=model.config)
    for _ in range(3):
        mask = torch.ones_like(ids)
        prompt = {"inputs_embeds": model.get_input_embeddings()(ids)} if as_embeddings else {"input_ids": ids}
        answer = generate(model, **prompt, attention_mask=mask, is_image=is_image, **{CACHE: cache})
        wanted = greedy_without_cache(model, ids, is_image)
        assert_same_logits(answer.logits, wanted)
        ids = torch.cat([ids, wanted.argmax(-1), random_ids(1, len(new_round))], dim=1)
        is_image = torch.cat([is_image, kinds("t" * NEW_TOKENS + new_round)], dim=1)


@pytest.mark.usefixtures("no_gradients")
def test_later_rounds_of_a_batch_keep_the_padding_between_them_out() -> None:
    model = make("llama")
    ids = random_ids(2, 40)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    is_image = kinds("tiitt", "ttttt")
    first = generate(model, input_ids=ids[:, :5], attention_mask=mask, is_image=is_image)
    said = torch.stack(first.logits, dim=1).argmax(-1)
    both = torch.cat([ids[:, :5], said, ids[:, 5:9]], dim=1)
    mask = torch.cat([mask, torch.ones_like(said), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])], dim=1)
    is_image = torch.cat([is_image, kinds("t" * NEW_TOKENS + "ttit", "t" * NEW_TOKENS + "iitt")], dim=1)
    cache = {CACHE: getattr(first, CACHE)}
    second = generate(model, input_ids=both, attention_mask=mask, is_image=is_image, **cache)
    alone = [(both[row : row + 1, real], is_image[row : row + 1, real]) for row, real in enumerate(mask == 1)]
    assert_same_logits(second.logits, torch.cat([greedy_without_cache(model, *one) for one in alone]))


@RENAMED
@pytest.mark.usefixtures("no_gradients")
def test_beams_and_lora_generate_through_it() -> None:
    model = with_lora("llama")
    ids, is_image = random_ids(2, 7), kinds("tiittit", "ttttiit")
    mask = torch.ones_like(ids)
    found = generate(model, input_ids=ids, attention_mask=mask, is_image=is_image)
    assert_same_logits(found.logits, greedy_without_cache(model, ids, is_image))
    beams = {
        cached: model.generate(
            input_ids=ids,
            attention_mask=mask,
            is_image=is_image,
            use_cache=cached,
            num_beams=3,
            max_new_tokens=NEW_TOKENS,
        )
        for cached in (True, False)
    }
    assert torch.equal(beams[True], beams[False])


def test_generating_without_saying_what_is_an_image_is_refused() -> None:
    model, ids = make("llama"), random_ids(1, 4)
    with pytest.raises(ValueError, match="needs is_image"):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
    for wrong in ("ttttt", "ttt"):
        with pytest.raises(ValueError, match=f"is_image has {len(wrong)} tokens a row, but 4 go in"):
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), is_image=kinds(wrong), max_new_tokens=1)
