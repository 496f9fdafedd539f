"""Adapters go where they are expected, and targets that match nothing are reported with what is near."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")

from torch import nn

from dst.errors import ConfigError
from tests.support import model_batches
from tests.support.adapted_models import OPEN_CLIP, adapted_names, experts
from trainer.config.model import DecoderConfig, LoraAdapters, LoraConfig
from trainer.model.lora import add_adapters, find_targets, unadapted_experts

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


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


def test_an_adapter_of_a_head_that_shares_its_weights_is_refused() -> None:
    tied = model_batches.make(decoder=DecoderConfig(preset="tiny_qwen2"))
    for targets in (("q_proj", "lm_head"), r".*(up_proj|lm_head)"):
        with pytest.raises(ConfigError) as caught:
            add_adapters(tied, LoraAdapters(decoder=LoraConfig(rank=2, target_modules=targets)))
        (line,) = caught.value.problems
        assert line.startswith("lora.decoder.target_modules: got lm_head, the output head, which shares its weights")
        assert line.endswith("set modules_to_save: [lm_head] to train both")


def test_a_rank_above_every_layers_smaller_side_is_refused() -> None:
    model = model_batches.make()
    add_adapters(model, LoraAdapters(decoder=LoraConfig(rank=64)))
    with pytest.raises(ConfigError, match=r"rank: got 65, more than the smaller side of every layer .* at most 64"):
        add_adapters(model_batches.make(), LoraAdapters(decoder=LoraConfig(rank=65)))


def test_all_linear_says_that_experts_have_no_adapters() -> None:
    (note,) = unadapted_experts(experts(), LoraAdapters(decoder=LoraConfig(rank=2)))
    assert "all-linear does not adapt the decoder's experts" in note
    assert note.endswith("add target_parameters: [down_proj, gate_up_proj]")
    assert unadapted_experts(model_batches.make(), LoraAdapters(decoder=LoraConfig(rank=2))) == []


def test_parameters_that_match_nothing_are_reported_with_what_is_near() -> None:
    lora = LoraConfig(rank=2, target_parameters=("gate_proj",))
    with pytest.raises(ConfigError, match="'gate_proj' matches no parameter of three dimensions; did you mean"):
        add_adapters(experts(), LoraAdapters(decoder=lora))
