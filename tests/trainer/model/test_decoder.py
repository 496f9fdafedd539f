"""Decoders fit a build's tokenizer without losing a row, and keep what their architecture ties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlavaConfig

from dst.errors import ConfigError
from tools.decoders.tiny import tiny_config
from trainer.attention.layout import build_layout
from trainer.config.model import DecoderConfig
from trainer.model.decoder import PRESETS, build_decoder, load_hf_config, max_positions
from trainer.model.decoder_checks import check_decoder
from trainer.model.decoder_logits import finish_logits

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def save(folder: Path, model_type: str = "llama", **changes: Any) -> Any:
    """A random model in a folder, as one downloads it."""
    config = load_hf_config(DecoderConfig(config={"model_type": model_type, **SIZES, **changes}), 50)
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("attention", ["causal", "mmca"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_small_and_make_logits(preset: str, attention: str) -> None:
    model: Any = build_decoder(DecoderConfig(preset=preset), 60, attention)
    assert model.get_input_embeddings().weight.shape == (60, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000
    ids = torch.tensor([[1, 2, 3]])
    layout = {"attention_layout": build_layout(torch.zeros(1, 3, dtype=torch.bool))} if attention == "mmca" else {}
    assert model(input_ids=ids, use_cache=False, **layout).logits.shape == (1, 3, 60)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_new_rows_are_the_mean_of_the_old_in_table_and_head(model_type: str, tied: bool, tmp_path: Path) -> None:
    before = save(tmp_path, model_type, tie_word_embeddings=tied)
    model = build_decoder(DecoderConfig(name=str(tmp_path)), 53, "causal")
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (table is head) == tied
    assert model.config.vocab_size == 53
    for now, old in ((table, before.get_input_embeddings()), (head, before.get_output_embeddings())):
        assert now.shape == (53, 16)
        assert torch.equal(now[:50], old.weight)
        torch.testing.assert_close(now[50:], old.weight.mean(0).expand(3, -1))


@pytest.mark.parametrize("tied", [False, True])
def test_the_table_that_learns_is_the_one_that_is_saved_and_generates(tied: bool, tmp_path: Path) -> None:
    save(tmp_path / "base", tie_word_embeddings=tied)
    model: Any = build_decoder(DecoderConfig(name=str(tmp_path / "base")), 53, "causal")
    ids = torch.tensor([[51, 52, 3]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    expected = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "trained")
    again: Any = build_decoder(DecoderConfig(name=str(tmp_path / "trained")), 53, "causal")
    torch.testing.assert_close(again(input_ids=ids).logits, expected)


def test_a_table_that_is_large_enough_stays_as_it_is(tmp_path: Path) -> None:
    before = save(tmp_path)
    model: Any = build_decoder(DecoderConfig(name=str(tmp_path)), 41, "causal")
    assert model.config.vocab_size == 50
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_without_weights_all_is_random_and_of_the_same_shape(tmp_path: Path) -> None:
    save(tmp_path)
    loaded: Any = build_decoder(DecoderConfig(name=str(tmp_path)), 53, "causal")
    torch.manual_seed(7)
    random: Any = build_decoder(DecoderConfig(name=str(tmp_path)), 53, "causal", weights=False)
    assert {k: v.shape for k, v in random.state_dict().items()} == {k: v.shape for k, v in loaded.state_dict().items()}
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(random.state_dict()[name], loaded.state_dict()[name])


def test_a_model_is_loaded_in_the_type_asked_for(tmp_path: Path) -> None:
    save(tmp_path)
    model: Any = build_decoder(DecoderConfig(name=str(tmp_path)), 53, "causal", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.5}),
        ("gemma3_text", {"final_logit_softcapping": 0.1}),
    ],
)
def test_models_that_scale_their_logits_are_understood(model_type: str, extra: dict[str, float]) -> None:
    model: Any = build_decoder(DecoderConfig(config={"model_type": model_type, **SIZES, **extra}), 50, "causal").eval()
    ids = torch.tensor([[4, 5, 6]])
    hidden = model.base_model(input_ids=ids).last_hidden_state
    plain = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(finish_logits(model.config, plain), model(input_ids=ids).logits)
    assert not torch.allclose(plain, model(input_ids=ids).logits, rtol=1e-3)


def refused(attention: str = "causal", **fields: Any) -> str:
    config = DecoderConfig(**fields)
    with pytest.raises(ConfigError) as caught:
        check_decoder(build_decoder(config, 50, attention), config, attention)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_what_cannot_be_loaded_is_reported_without_a_traceback(tmp_path: Path) -> None:
    assert "cannot be read" in refused(name=str(tmp_path / "nowhere"))
    assert "did you mean tiny_llama" in refused(preset="tiny_lama")
    assert "cannot be read" in refused(config={"model_type": "no_such_model"})
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "its files lack model.layers.1.mlp.up_proj.weight" in refused(name=str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert "cannot be loaded" in refused(name=str(tmp_path))


def test_code_that_a_folder_brings_is_never_run_nor_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = {"model_type": "foo", "auto_map": {"AutoConfig": "configuration_foo.FooConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "configuration_foo.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "it has code of its own, which is never run here" in refused(name=str(tmp_path))
    assert not (tmp_path / "ran").exists()
    assert "y/N" not in capsys.readouterr().out


def test_a_pickle_that_holds_code_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    build_decoder(DecoderConfig(name=str(tmp_path)), 50, "causal")
    torch.save({**weights, "code": Path("x")}, tmp_path / "pytorch_model.bin")
    assert "cannot be loaded: Weights only load failed" in refused(name=str(tmp_path))


def test_decoders_that_cannot_attend_as_mmca_wants_are_refused() -> None:
    sizes = {"model_type": "gpt_neo", "hidden_size": 16, "num_layers": 2, "num_heads": 2, "eos_token_id": None}
    sizes |= {"attention_types": [[["global"], 2]], "attention_layers": ["global"] * 2}
    build_decoder(DecoderConfig(config=sizes, attn_implementation="eager"), 50, "causal")
    assert "GPTNeoForCausalLM attends 0 times through transformers' attention interface" in refused(
        "mmca", config=sizes, attn_implementation="eager"
    )
    message = refused("mmca", config={**SIZES, "model_type": "gemma2", "head_dim": 8})
    assert "model.attention: a gemma2 of these sizes cannot do mmca: Gemma2Attention uses softcap" in message


def test_a_decoder_whose_layers_keep_the_layout_from_attention_is_refused_by_name_and_setting() -> None:
    message = refused("mmca", config={**SIZES, "model_type": "stablelm"})
    assert (
        "model.attention: a stablelm of these sizes cannot do mmca: its layers do not pass on to their attention"
        in message
    )
    assert message.endswith("choose another decoder, or set model.attention: causal")
    assert "attention_layout" not in message


@pytest.mark.parametrize(
    ("model_type", "kernel"), [("gemma2", "sdpa"), ("bloom", "sdpa"), ("gpt_neo", "flex_attention")]
)
def test_a_decoder_without_the_attention_that_is_set_is_refused_with_the_setting_that_works(
    model_type: str, kernel: str
) -> None:
    message = refused(config={"model_type": model_type, "hidden_size": 32}, attn_implementation=kernel)
    what = f"model.decoder.attn_implementation: a {model_type} of these sizes has no {kernel} attention"
    assert message.startswith(what), message
    assert message.endswith("set model.decoder.attn_implementation: eager")


@pytest.mark.parametrize("model_type", ["opt", "bloom", "mamba", "lfm2", "qwen3_next", "gpt_oss"])
def test_decoders_whose_samples_would_mix_train_with_one_sample_in_a_sequence(model_type: str) -> None:
    config = DecoderConfig(config=tiny_config(model_type), attn_implementation="eager")
    assert not check_decoder(build_decoder(config, 100, "causal"), config, "causal")


def test_decoders_that_compute_without_their_ids_or_parameters_are_refused() -> None:
    message = refused(config=tiny_config("gemma3n_text"))
    assert "Gemma3nForCausalLM reads the ids of tokens in its layers as well (embed_tokens_per_layer.weight)" in message
    assert "takes no images in place of tokens" in refused(config=tiny_config("gemma4_text"))
    message = refused("mmca", config=tiny_config("doge"))
    assert "mmca would leave layers.0.self_attn.A, layers.0.self_attn.dt_proj.weight" in message


def test_decoders_that_see_what_they_should_not_are_refused() -> None:
    assert "a token depends on tokens behind it" in refused(config=tiny_config("xlnet"), attn_implementation="eager")
    message = refused("mmca", config=tiny_config("falcon_h1"))
    assert "a token depends on tokens before it although it is an image" in message


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        (
            {"model_type": "gpt_neox", "hidden_size": 30},
            "num_attention_heads is 4, which does not divide hidden_size 30",
        ),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, which does not divide num_attention_heads 4; expected"),
        ({"head_dim": 5}, "head_dim is 5; expected an even number"),
        ({"model_type": "falcon", "head_dim": 8}, "model.decoder.config.head_dim: got 8, but a falcon computes it"),
        ({"model_type": "modernbert-decoder"}, "cannot be read: Validation error for field 'pad_token_id'"),
        ({"model_type": "dots1", "num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"num_attention_heads": 0}, "model.decoder: a llama of these sizes"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(sizes: dict[str, Any], problem: str) -> None:
    assert problem in refused(config={"model_type": "llama", **SIZES, **sizes}, attn_implementation="eager")


def test_a_model_that_is_more_than_a_decoder_is_refused_with_what_to_name_instead(tmp_path: Path) -> None:
    message = refused(config={"model_type": "gemma3", "text_config": SIZES})
    assert "is a gemma3, which contains a text decoder (gemma3_text) and more" in message
    assert "which has an encoder of texts as well; expected a decoder alone" in refused(config={"model_type": "bart"})
    LlavaConfig().save_pretrained(tmp_path)
    message = refused(name=str(tmp_path))
    assert f"set model.init_from: {tmp_path} to train it, or name the folder of its language model" in message


def test_a_base_model_without_a_head_is_not_a_decoder(tmp_path: Path) -> None:
    save(tmp_path, tie_word_embeddings=False).base_model.save_pretrained(tmp_path)
    assert "its files have no output head (lm_head.weight), so it is a base model" in refused(name=str(tmp_path))


def test_the_longest_sequence_is_reported_where_there_is_one() -> None:
    assert max_positions(load_hf_config(DecoderConfig(preset="tiny_llama"), 50)) == 8192
    assert max_positions(load_hf_config(DecoderConfig(config={"model_type": "bloom"}), 50)) is None
