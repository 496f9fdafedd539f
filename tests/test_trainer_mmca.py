"""Multi-modal causal attention equals its definition, layer by layer and through whole models."""

# ruff: noqa: E402 - torch and transformers may be missing, and torchvision is mended before they look at it

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from trainer.torchvision_operators import declare_operators

declare_operators()
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

import torch
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from transformers.masking_utils import AttentionMaskInterface

import oracles_attention
from trainer import mmca, mmca_layout
from trainer.mmca_generate import enable_generation
from trainer.mmca_layout import MmcaLayout, StepMasks, TextRows, build_layout

VOCABULARY = 40
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=4),
    "smollm3": lambda: SmolLM3Config(**SIZES),
}
# transformers renames gradient to activation checkpointing; peft, and the oldest transformers we support, say gradient.
RENAMED = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated and will be removed in v6:FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """On one thread: tensors are tiny, and waiting for a second core takes longer than the work."""
    mmca.register()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def make(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config).double().eval()
    model.set_attn_implementation("mmca")
    enable_generation(model)
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where a mistake could hide
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    """One of every architecture; tests leave it as it was."""
    return make(request.param)


@dataclass(frozen=True)
class Case:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    is_image: torch.Tensor
    segment_ids: torch.Tensor

    @property
    def layout(self) -> MmcaLayout:
        return build_layout(self.is_image, self.segment_ids, num_queries=self.query.shape[2])

    def ours(self, **options: Any) -> torch.Tensor:
        out, weights = mmca.mmca_attention(
            torch.nn.Module(), self.query, self.key, self.value, None, scaling=0.4, mmca_layout=self.layout, **options
        )
        assert weights is None
        return out

    def defined(self) -> torch.Tensor:
        return oracles_attention.mmca(self.query, self.key, self.value, self.is_image, self.segment_ids, 0.4)


@st.composite
def cases(draw: st.DrawFn, *, cached: bool = False) -> Case:
    """Rows of samples and padding in any order; each token text or image."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(2 if cached else 1, 14))
    kinds = st.lists(st.booleans(), min_size=length, max_size=length)
    numbers = st.lists(st.integers(0, 3), min_size=length, max_size=length)
    # Whole samples one after the other, as packing makes them, or padding anywhere, as rounds of a chat make it.
    segments = numbers.map(sorted) | st.lists(st.integers(0, 1), min_size=length, max_size=length) | numbers
    num_queries = draw(st.integers(1, length - 1)) if cached else length
    key_heads, groups, width = draw(st.sampled_from([(1, 1, 4), (2, 1, 3), (1, 3, 2), (2, 2, 4)]))
    torch.manual_seed(draw(st.integers(0, 99)))

    def random(heads: int, tokens: int) -> torch.Tensor:
        return torch.randn(batch, tokens, heads, width, dtype=torch.float64).transpose(1, 2).requires_grad_()

    return Case(
        query=random(key_heads * groups, num_queries),
        key=random(key_heads, length),
        value=random(key_heads, length),
        is_image=torch.tensor([draw(kinds) for _ in range(batch)]),
        segment_ids=torch.tensor([draw(segments) for _ in range(batch)]),
    )


def gradients(out: torch.Tensor, case: Case) -> list[torch.Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    inputs = (case.query, case.key, case.value)
    found = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


def assert_same_logits(found: tuple[torch.Tensor, ...], wanted: torch.Tensor) -> None:
    """`generate` rounds the logits of its steps to fp32."""
    torch.testing.assert_close(torch.stack(found, dim=1), wanted.float())


def assert_as_defined(case: Case) -> None:
    ours, defined = case.ours(), case.defined()
    torch.testing.assert_close(ours, defined, rtol=0, atol=1e-10)
    for got, wanted in zip(gradients(ours, case), gradients(defined, case), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@given(case=cases())
def test_outputs_and_gradients_are_those_of_the_definition(case: Case) -> None:
    assert isinstance(case.layout.plan, TextRows)
    assert_as_defined(case)


@given(case=cases(cached=True), masked_queries=st.sampled_from([0, 16]))
def test_new_tokens_against_cached_keys_are_as_defined_in_both_forms(case: Case, masked_queries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmca_layout, "MASKED_QUERIES", masked_queries)
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


def interleaved(num_queries: int = 12) -> Case:
    """A packed row of two samples and padding; the second row starts with padding and an image."""
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, heads, 12, 4, dtype=torch.float64) for heads in (4, 2, 2))
    is_image = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0]]).bool()
    segment_ids = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    return Case(query[:, :, 12 - num_queries :], key, value, is_image, segment_ids)


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
    assert {call.mask.device.type for call in cached.over_text if call.mask is not None} == {"meta"}


@pytest.mark.parametrize(
    ("is_image", "segment_ids", "num_queries", "message"),
    [
        (torch.zeros(1, 3), None, None, "is_image is torch.float32"),
        (torch.zeros(3, dtype=torch.bool), None, None, "wanted torch.bool"),
        (torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.int64), None, "segment_ids is torch.int64"),
        (torch.zeros(1, 3, dtype=torch.bool), None, 4, "num_queries is 4; wanted 1 to 3"),
        (torch.zeros(1, 3, dtype=torch.bool), None, 0, "num_queries is 0; wanted 1 to 3"),
    ],
)
def test_a_layout_of_the_wrong_shape_says_what_was_wanted(
    is_image: torch.Tensor, segment_ids: torch.Tensor | None, num_queries: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_layout(is_image, segment_ids, num_queries=num_queries)


def positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """Each sample counts from 0; padding stays at 0."""
    found = torch.zeros_like(segment_ids)
    for row, segments in enumerate(segment_ids):
        for sample in set(segments.tolist()) - {0}:
            where = segments == sample
            found[row, where] = torch.arange(int(where.sum()))
    return found


def logits(
    model: Any, ids: torch.Tensor, is_image: torch.Tensor, segment_ids: torch.Tensor | None = None
) -> torch.Tensor:
    segment_ids = torch.ones_like(ids) if segment_ids is None else segment_ids
    layout = build_layout(is_image, segment_ids)
    found: torch.Tensor = model(
        input_ids=ids, position_ids=positions(segment_ids), mmca_layout=layout, use_cache=False
    ).logits
    return found


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(5))


def kinds(*rows: str) -> torch.Tensor:
    """`t` text, `i` image."""
    return torch.tensor([[letter == "i" for letter in row] for row in rows])


@pytest.mark.usefixtures("no_gradients")
def test_a_whole_model_gives_what_the_definition_gives_in_its_place(model: Any) -> None:
    case = interleaved()
    ids = random_ids(2, 12)

    def slowly(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[torch.Tensor, None]:
        return oracles_attention.mmca(query, key, value, case.is_image, case.segment_ids, scaling), None

    AttentionInterface.register("mmca_defined", slowly)
    AttentionMaskInterface.register("mmca_defined", mmca.no_mask)
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
    for number, wanted in enumerate(alone, start=1):
        torch.testing.assert_close(together[segments == number], wanted[0], rtol=0, atol=1e-12)
    assert together.isfinite().all()

    left_then_right = torch.cat([torch.cat([pad, ids[1]], dim=1), torch.cat([ids[1], pad], dim=1)])
    segments = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    padded = logits(model, left_then_right, kinds("ttttt", "ttttt"), segments)
    for row in (0, 1):
        torch.testing.assert_close(padded[row][segments[row] == 1], alone[1][0], rtol=0, atol=1e-12)


def parameter_gradients(model: Any) -> dict[str, torch.Tensor]:
    case = interleaved()
    ids = random_ids(2, 12)
    found = model(
        input_ids=ids,
        position_ids=positions(case.segment_ids),
        labels=ids.where(case.segment_ids != 0, -100),
        mmca_layout=build_layout(case.is_image, case.segment_ids),
        use_cache=False,
    )
    found.loss.backward()
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
        for parameter, wanted in plain.items():
            torch.testing.assert_close(checkpointed[parameter], wanted, rtol=0, atol=1e-12)


def with_lora(name: str) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(make(name), config)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter)
    return model


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


NEW_TOKENS = 6


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
        answer = generate(model, **prompt, attention_mask=mask, is_image=is_image, past_key_values=cache)
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
    second = generate(
        model, input_ids=both, attention_mask=mask, is_image=is_image, past_key_values=first.past_key_values
    )
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


def test_a_forward_without_a_fitting_layout_is_refused() -> None:
    model, ids = make("llama"), random_ids(1, 4)
    with pytest.raises(ValueError, match="without a layout; pass model"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="got 1 rows, 4 queries and 4 keys, but its layout is for 1 rows, 5 queries"):
        model(input_ids=ids, mmca_layout=build_layout(kinds("ttttt")))


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
        windowed, wanted = (logits(one, ids, is_image, halves) for one in (model, whole))
    torch.testing.assert_close(windowed, wanted, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"sliding window|but its layout is for"):
        model.generate(
            input_ids=ids[:, :3], attention_mask=ids[:, :3] * 0 + 1, is_image=is_image[:, :3], max_new_tokens=9
        )


@pytest.mark.parametrize("extra", ["softcap", "s_aux", "position_bias"])
def test_attention_that_is_not_defined_is_refused(extra: str) -> None:
    with pytest.raises(ValueError, match=f"asks for {extra}"):
        interleaved().ours(**{extra: 1.0})


def test_chunked_attention_is_refused_where_it_would_cut() -> None:
    config = LlamaConfig(**SIZES)
    mmca.no_mask(kv_length=8, local_size=8, config=config)
    with pytest.raises(ValueError, match="chunks of 8 tokens"):
        mmca.no_mask(kv_length=9, local_size=8, config=config)
