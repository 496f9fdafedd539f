"""Adapters go where they are expected, train alone, and merge away; only the chosen weights are trained."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from rich.console import Console
from torch import nn

from dst.errors import ConfigError
from shards.loader.fields import BatchFields
from tests.support import model_batches
from tools.decoders.tiny import tiny_config
from trainer.config.model import DecoderConfig, EncoderConfig, LearningRates, LoraAdapters, LoraConfig
from trainer.model.build_model import build_model
from trainer.model.lora import add_adapters, add_lora, find_targets, merge_lora, unadapted_experts
from trainer.model.param_groups import by_component, choose_trained, component_rows, parameter_groups, print_parameters
from trainer.model.vision_chat import VisionChatModel

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
FROZEN = LearningRates(projector=None)
CLIP = {"image_size": 28, "layers": 3, "width": 16, "head_width": 8, "patch_size": 14}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
OPEN_CLIP = EncoderConfig(kind="open_clip", config={"embed_dim": 8, "vision_cfg": CLIP})


def logits(model: VisionChatModel) -> torch.Tensor:
    inputs = model_batches.layout([model_batches.SAMPLES])
    return model.logits(BatchFields(**inputs, images=model_batches.random_images(3)))


def shake(model: nn.Module) -> None:
    """Adapters start as nothing; give them something to say."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def adapted_names(model: VisionChatModel) -> set[str]:
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}


def test_all_linear_adapts_every_linear_layer_but_the_head() -> None:
    model = model_batches.make()
    linear = {f"decoder.{n}" for n, m in model.get_submodule("decoder").named_modules() if isinstance(m, nn.Linear)}
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2)))
    assert adapted_names(model) == linear - {"decoder.lm_head"}


@pytest.mark.parametrize(
    ("targets", "parts"),
    [(("q_proj", "v_proj"), {"q_proj", "v_proj"}), (r".*mlp\..*_proj", {"gate_proj", "up_proj", "down_proj"})],
)
def test_names_and_patterns_choose_layers(targets: Any, parts: set[str]) -> None:
    model = model_batches.make()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2, target_modules=targets)))
    assert {name.rpartition(".")[2] for name in adapted_names(model)} == parts
    assert len(adapted_names(model)) == 2 * len(parts)


def test_a_whole_name_chooses_one_layer() -> None:
    model = model_batches.make()
    name = "model.layers.1.mlp.up_proj"
    add_adapters(model, LoraAdapters(decoder=LoraConfig(target_modules=(name,))))
    assert adapted_names(model) == {f"decoder.{name}"}


def test_decoder_and_encoder_have_adapters_of_their_own() -> None:
    model = model_batches.make()
    adapters = LoraAdapters(
        decoder=LoraConfig(rank=2, target_modules=("o_proj",)), encoder=LoraConfig(rank=3, target_modules=("value",))
    )
    add_adapters(model, adapters)
    ranks = {name.split(".")[0]: p.shape[0] for name, p in model.named_parameters() if "lora_A" in name}
    assert ranks == {"decoder": 2, "encoder": 3}


def test_targets_that_match_nothing_are_all_reported_with_what_is_near() -> None:
    adapters = LoraAdapters(
        decoder=LoraConfig(target_modules=("q_porj", "v_proj", "query")),
        encoder=LoraConfig(target_modules=r"nothing.*"),
    )
    with pytest.raises(ConfigError) as caught:
        add_adapters(model_batches.make(), adapters)
    first, second, third = caught.value.problems
    assert first.startswith("lora.decoder.target_modules: 'q_porj' matches no linear layer")
    assert "q_proj" in first
    assert second.startswith("lora.decoder.target_modules: 'query' matches no linear layer")
    assert third.startswith("lora.encoder.target_modules: 'nothing.*'")


def test_a_broken_pattern_is_reported() -> None:
    with pytest.raises(ConfigError, match="is not a valid regex"):
        find_targets(model_batches.make().get_submodule("decoder"), "(", where="lora.decoder")


def test_torch_attention_is_adapted_as_a_block_or_not_at_all() -> None:
    model = model_batches.make(encoder=OPEN_CLIP)
    tower = model.encoder.tower
    with pytest.raises(ConfigError, match="part of torch's attention, expected the block: attn"):
        find_targets(tower, ("out_proj",), where="lora.encoder")
    assert {name.rpartition(".")[2] for name in find_targets(tower, "all-linear", where="")} == {"c_fc", "c_proj"}
    assert {name.rpartition(".")[2] for name in find_targets(tower, ("attn",), where="")} == {"attn"}


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
    model = model_batches.make(encoder=encoder)
    names = set(model.state_dict())
    before = logits(model)
    encoder_lora = LoraConfig(rank=2, alpha=6, target_modules=encoder_targets)
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2), encoder=encoder_lora))
    model.double()
    choose_trained(model, FROZEN)
    torch.testing.assert_close(logits(model), before)
    shake(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, rtol=1e-2)
    torch.autograd.backward(adapted.square().mean())
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if "lora_" in name}
    merge_lora(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(logits(model), adapted)


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


def test_saved_modules_that_match_nothing_are_reported_with_what_is_near() -> None:
    adapters = LoraAdapters(
        decoder=LoraConfig(modules_to_save=("embed_token", "act_fn")), encoder=LoraConfig(modules_to_save=("lm_head",))
    )
    with pytest.raises(ConfigError) as caught:
        add_adapters(model_batches.make(), adapters)
    first, second, third = caught.value.problems
    assert first.startswith("lora.decoder.modules_to_save: 'embed_token' matches no module with weights")
    assert "embed_tokens" in first
    assert second.startswith("lora.decoder.modules_to_save: 'act_fn' matches no module with weights")
    assert third.startswith("lora.encoder.modules_to_save: 'lm_head' matches no module with weights; there are ")


def test_a_layer_that_is_named_as_target_and_as_saved_is_reported() -> None:
    lora = LoraConfig(target_modules=("q_proj", "lm_head"), modules_to_save=("lm_head",))
    with pytest.raises(ConfigError, match="'lm_head' matches no linear layer outside of modules_to_save"):
        add_adapters(model_batches.make(), LoraAdapters(decoder=lora))


def test_every_parameter_is_in_one_component() -> None:
    model = model_batches.make()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(target_modules=("q_proj",))))
    components: dict[str, set[str]] = {}
    for name, _, component in by_component(model):
        components.setdefault(component, set()).add(name)
    assert set.union(*components.values()) == {name for name, _ in model.named_parameters()}
    assert components["embeddings"] == {"decoder.model.embed_tokens.weight", "decoder.lm_head.weight"}
    assert all("lora_" in name for name in components["lora"])
    assert all(name.startswith("encoder.") for name in components["encoder"])


@pytest.mark.parametrize("component", ["encoder", "projector", "embeddings", "decoder"])
@pytest.mark.parametrize("preset", ["tiny_llama", "tiny_qwen2"])
def test_gradients_flow_where_they_are_expected_and_nowhere_else(component: str, preset: str) -> None:
    model = model_batches.make(decoder=DecoderConfig(preset=preset))
    rate: dict[str, Any] = {component: 1e-3}
    choose_trained(model, replace(FROZEN, **rate))
    model.train()
    model(**model_batches.layout([model_batches.SAMPLES]), images=model_batches.random_images(3)).total.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name for name, _, each in by_component(model) if each == component}
    assert moved == expected
    assert model.encoder.training == (component == "encoder")


def test_what_was_frozen_or_not_before_makes_no_difference() -> None:
    model = model_batches.make()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    choose_trained(model, replace(FROZEN, decoder=1e-5))
    trained = {component for _, parameter, component in by_component(model) if parameter.requires_grad}
    frozen = {component for _, parameter, component in by_component(model) if not parameter.requires_grad}
    assert (trained, frozen) == ({"decoder"}, {"encoder", "projector", "embeddings"})


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing is trained"):
        choose_trained(model_batches.make(), FROZEN)


@pytest.mark.parametrize("preset", ["tiny_llama", "tiny_qwen2"])  # an untied and a tied head
def test_groups_hold_every_trained_parameter_once(preset: str) -> None:
    model = model_batches.make(decoder=DecoderConfig(preset=preset))
    rates = LearningRates(encoder=1e-6, projector=1e-3, embeddings=1e-4, decoder=1e-5, lora=2e-4)
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2)))
    choose_trained(model, rates)
    groups = parameter_groups(model, rates, 0.1)
    listed = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        component = group.name.split()[0]
        assert group.learning_rate == getattr(rates, component)
        assert group.weight_decay == (0.0 if "not decayed" in group.name else 0.1)
    free = {names[id(parameter)] for group in groups if not group.weight_decay for parameter in group.parameters}
    named = ("norm", "bias", "embed_tokens", "lm_head", "class_embedding", "position_embedding")
    assert free == {name for name in names.values() if any(part in name for part in named)}
    tied = preset == "tiny_qwen2"
    assert ("decoder.lm_head.weight" in names.values()) != tied
    torch.optim.AdamW([group.for_torch() for group in groups])


def test_the_table_counts_every_component() -> None:
    model = model_batches.make()
    rates = LearningRates()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2, target_modules=("q_proj",))))
    choose_trained(model, rates)
    rows = {row.component: row for row in component_rows(model, rates)}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert sum(row.trained for row in rows.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (rows["lora"].parameters, rows["lora"].share, rows["lora"].learning_rate) == (2 * 2 * 2 * 64, 1.0, 2e-4)
    assert (rows["decoder"].trained, rows["decoder"].share, rows["decoder"].learning_rate) == (0, 0.0, None)
    written = io.StringIO()
    print_parameters(list(rows.values()), Console(file=written, width=100))
    assert "frozen" in written.getvalue()
    assert f"{rows['projector'].parameters:,}" in written.getvalue()


def test_an_adapter_of_a_head_that_shares_its_weights_is_refused() -> None:
    tied = model_batches.make(decoder=DecoderConfig(preset="tiny_qwen2"))
    for targets in (("q_proj", "lm_head"), r".*(up_proj|lm_head)"):
        with pytest.raises(ConfigError) as caught:
            add_adapters(tied, LoraAdapters(decoder=LoraConfig(rank=2, target_modules=targets)))
        (line,) = caught.value.problems
        assert line.startswith("lora.decoder.target_modules: got lm_head, the output head, which shares its weights")
        assert line.endswith("set modules_to_save: [lm_head] to train both")


def test_an_adapter_of_a_head_of_its_own_merges() -> None:
    model = model_batches.make()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=2, target_modules=("lm_head",))))
    model.double()
    shake(model)
    adapted = logits(model)
    merge_lora(model)
    torch.testing.assert_close(logits(model), adapted)


def test_a_rank_above_every_layers_smaller_side_is_refused() -> None:
    model = model_batches.make()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=64)))
    with pytest.raises(ConfigError, match=r"rank: got 65, more than the smaller side of every layer .* at most 64"):
        add_adapters(model_batches.make(), LoraAdapters(decoder=LoraConfig(rank=65)))


def experts() -> VisionChatModel:
    config = replace(model_batches.CONFIG, decoder=DecoderConfig(config=tiny_config("qwen3_moe")))
    return build_model(config, model_batches.facts()).eval()


def test_all_linear_says_that_experts_have_no_adapters() -> None:
    (note,) = unadapted_experts(experts(), LoraAdapters(decoder=LoraConfig(rank=2)))
    assert "all-linear does not adapt the decoder's experts" in note
    assert note.endswith("add target_parameters: [down_proj, gate_up_proj]")
    assert unadapted_experts(model_batches.make(), LoraAdapters(decoder=LoraConfig(rank=2))) == []


def test_experts_are_adapted_trained_and_merged() -> None:
    model = experts()
    names = set(model.state_dict())
    before = logits(model)
    lora = LoraConfig(rank=2, target_parameters=("gate_up_proj", "down_proj"))
    add_adapters(model, LoraAdapters(decoder=lora))
    choose_trained(model, FROZEN)
    torch.testing.assert_close(logits(model), before)
    shake(model)
    adapted = logits(model)
    assert not torch.allclose(adapted, before, rtol=1e-2)
    torch.autograd.backward(adapted.square().mean())
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert sum("experts" in name for name in trained) == 2 * 2 * 2
    merge_lora(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)


def test_parameters_that_match_nothing_are_reported_with_what_is_near() -> None:
    lora = LoraConfig(rank=2, target_parameters=("gate_proj",))
    with pytest.raises(ConfigError, match="'gate_proj' matches no parameter of three dimensions; did you mean"):
        add_adapters(experts(), LoraAdapters(decoder=lora))
