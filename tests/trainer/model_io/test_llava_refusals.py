"""A model is exported as a LLaVA only if transformers computes the same with it; else the reason is given."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch

import trainer
from tests.support import exports, llava_exports, model_batches
from tests.support.exports import CLIP, OPEN_CLIP, SIDE
from tests.support.llava_exports import SPARE_ROWS
from trainer.export.export import export_model
from trainer.model_io.llava import llava_tensors, refusals
from trainer.model_io.standard_models import STANDARD_MODELS

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)
timm_vit = pytest.fixture(llava_exports.timm_vit)


@pytest.mark.parametrize(
    ("different", "reason"),
    [
        ({"class_token": True}, "has trunk.cls_token"),
        ({"qkv_bias": False}, "has fewer parameters"),
        ({"act_layer": "silu"}, "has SiLU"),
    ],
)
def test_another_vit_of_timm_is_not_a_llava(
    different: dict[str, Any], reason: str, timm_vit: Callable[..., dict[str, Any]], build_of: exports.MakeBuild
) -> None:
    config = exports.config_of(build_of(), encoder=timm_vit(**different))
    (found,) = refusals(exports.make_model(config, build_of()), config.model)
    assert found.startswith(f"its open_clip encoder, timm's small_siglip, {reason}")
    assert "encoder.kind: hf" in found


GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}
FALCON: dict[str, Any] = {**SPARE_ROWS["config"], "model_type": "falcon"}
GPT_NEO: dict[str, Any] = {
    "model_type": "gpt_neo",
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global"], 2]],
    "attention_layers": ["global"] * 2,
}


@pytest.mark.parametrize(
    "sizes",
    [GPT2, {**GPT2, "model_type": "gpt_bigcode"}, FALCON, GPT_NEO],
    ids=lambda sizes: str(sizes["model_type"]),
)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_a_folder_is_called_a_llava_only_if_transformers_opens_it(
    is_tied: bool, sizes: dict[str, Any], build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    decoder = {
        "config": {**sizes, "vocab_size": 1300, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": is_tied},
        "attn_implementation": "eager",
    }
    batch = {"packed": False}  # some releases mix samples of a sequence in Falcon and GPT-BigCode
    config = exports.config_of(build, decoder=decoder, learning_rates=exports.ALL, batch=batch)
    model = exports.make_model(config, build)

    done = export_model(model, config, build, tmp_path / "out", step=1)

    if done.form == "llava":
        assert not is_tied
        exports.check_is_llava(model, build, tmp_path / "out")
    else:
        assert "transformers' LLaVA cannot use its decoder" in done.refusals[0]
        assert "embed_tokens" in done.refusals[0]
        ids, two = exports.expanded(model, exports.chat_of(build)), exports.sample_images()
        loaded = trainer.load(tmp_path / "out").model
        pixels = exports.pixels_of(two, build)
        assert (exports.logits_of(loaded, ids, pixels) - exports.logits_of(model, ids, pixels)).abs().max() < 1e-5
        with torch.no_grad():
            auto = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
            logits = auto(**exports.processed(tmp_path / "out", two)).logits
        assert (logits - exports.logits_of(model, ids, pixels)).abs().max() < 1e-5


def test_a_decoder_that_computes_something_else_in_a_llava_is_found(
    build_of: exports.MakeBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = build_of()
    config = exports.config_of(build)
    model = exports.make_model(config, build)
    forward = transformers.LlavaForConditionalGeneration.forward

    def scaled(self: Any, *arguments: Any, **options: Any) -> Any:
        outputs = forward(self, *arguments, **options)
        outputs.logits = outputs.logits * 2
        return outputs

    monkeypatch.setattr(transformers.LlavaForConditionalGeneration, "forward", scaled)
    done = export_model(model, config, build, tmp_path / "out", step=1)
    assert done.refusals == (
        "transformers' LLaVA cannot use its decoder LlamaForCausalLM, which has other logits there",
    )


@pytest.mark.parametrize("damage", ["other name", "other shape"])
def test_a_written_folder_that_transformers_does_not_open_becomes_one_of_dsvl(
    damage: str, build_of: exports.MakeBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = build_of()
    config = exports.config_of(build)
    model = exports.make_model(config, build)
    written = llava_tensors

    def damaged(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in written(model):
            if name.endswith("layers.1.self_attn.q_proj.weight") and name.startswith("language_model"):
                yield (f"{name}s", tensor) if damage == "other name" else (name, tensor[1:])
            else:
                yield name, tensor

    monkeypatch.setitem(STANDARD_MODELS, "llava", replace(STANDARD_MODELS["llava"], tensors=damaged))
    done = export_model(model, config, build, tmp_path / "out", step=1)
    assert done.form == "dsvl"
    assert "cannot be opened there" in done.refusals[0]
    assert trainer.load(tmp_path / "out").model.attention == "causal"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"attention": "mmca"}, "attends to text and to images separately (MMCA)"),
        ({"projector": {"kind": "linear"}}, "projector is linear"),
        ({"projector": {"kind": "perceiver", "num_queries": 4, "num_heads": 4}}, "projector is perceiver"),
        ({"encoder": {"kind": "tiny", "config": {"image_size": SIDE, "patch_size": 16}}}, "encoder is tiny"),
        ({"encoder": {"kind": "hf", "config": {**CLIP, "model_type": "dinov2"}}}, "encoder is dinov2"),
        (
            {
                "encoder": {
                    "kind": "open_clip",
                    "config": {**OPEN_CLIP, "vision_cfg": {**OPEN_CLIP["vision_cfg"], "ls_init_value": 0.1}},
                }
            },
            "open_clip encoder has transformer.resblocks.0.ls_1.gamma",
        ),
        (
            {"decoder": {"config": {**SPARE_ROWS["config"], "model_type": "granite", "logits_scaling": 4.0}}},
            "GraniteForCausalLM scales its logits",
        ),
    ],
    ids=["mmca", "linear", "perceiver", "tiny", "dinov2", "layer scale", "logit scale"],
)
def test_what_is_not_a_llava_is_refused_by_transformers_with_the_reason(
    model: dict[str, Any], reason: str, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    config = exports.config_of(build, **model)
    made = exports.make_model(config, build)

    done = export_model(made, config, build, tmp_path / "out", step=1)

    assert done.form == "dsvl"
    assert list(done.refusals) == refusals(made, config.model)
    assert any(reason in why for why in done.refusals)
    assert reason in (tmp_path / "out/README.md").read_text()
    for plain in (transformers.LlavaConfig, transformers.LlavaForConditionalGeneration):
        with pytest.raises((ValueError, KeyError), match="this is not a LLaVA model") as caught:  # by release
            plain.from_pretrained(tmp_path / "out")
        assert reason in str(caught.value)
        assert "trainer.load" in str(caught.value)
