"""A causal model with pixel shuffle is a standard InternVL of transformers: same logits, answers and pixels."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import trainer
from tests.support import exports, model_batches
from tests.support.exports import CLIP, DINOV2, INTERNVIT, OPEN_CLIP, SIDE, SIGLIP
from tests.support.llava_exports import SPARE_ROWS
from trainer.export.export import export_model

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)

LLAMA, QWEN = {"preset": "tiny_llama"}, {"preset": "tiny_qwen2"}
VARIANT = {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": True, "use_mean_pooling": False}


def shuffled(build: Any, encoder: dict[str, Any], decoder: dict[str, Any] = QWEN, **model: Any) -> Any:
    """The config of a model with pixel shuffle."""
    return exports.config_of(
        build,
        encoder=encoder,
        decoder=decoder,
        projector={"kind": "pixel_shuffle"},
        learning_rates=exports.ALL,
        **model,
    )


@pytest.mark.parametrize(
    ("encoder", "decoder", "settings"),
    [
        ({"kind": "hf", "config": INTERNVIT}, LLAMA, {"fit": "squash"}),
        ({"kind": "hf", "config": {**INTERNVIT, **VARIANT}, "layer": -1}, QWEN, {"fit": "crop"}),
        ({"kind": "hf", "config": {**INTERNVIT, "image_size": 48}, "image_size": SIDE}, QWEN, {"fit": "squash"}),
        ({"kind": "hf", "config": DINOV2}, QWEN, {"fit": "squash"}),
        ({"kind": "hf", "config": DINOV2, "layer": 1}, LLAMA, {"fit": "crop"}),
        ({"kind": "hf", "config": {**DINOV2, "qkv_bias": False, "image_size": 48}, "image_size": SIDE}, QWEN, {}),
    ],
    ids=[
        "InternViT, untied",
        "InternViT as in 6B, last layer",
        "InternViT at another size",
        "DINOv2, tied",
        "DINOv2, first layer",
        "DINOv2 at another size",
    ],
)
def test_a_causal_model_with_pixel_shuffle_is_an_internvl_with_the_same_logits(
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    settings: dict[str, Any],
    build_of: exports.MakeBuild,
    tmp_path: Path,
) -> None:
    build = build_of(**settings)
    config = shuffled(build, encoder, decoder)
    model = exports.make_model(config, build)

    done = export_model(model, config, build, tmp_path / "out", step=1)

    assert (done.form, done.refusals) == ("internvl", ())
    exports.check_is_llava(model, build, tmp_path / "out", "InternVL")


def test_the_names_are_those_of_published_internvl_folders(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = shuffled(build, {"kind": "hf", "config": DINOV2}, LLAMA)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    assert {  # of OpenGVLab/InternVL3-1B-hf
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "multi_modal_projector.layer_norm.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.embeddings.cls_token",
        "vision_tower.encoder.layer.0.attention.projection_layer.weight",
        "vision_tower.encoder.layer.0.lambda_1",
        "vision_tower.encoder.layer.0.layernorm_before.weight",
    } <= set(exports.names_in(tmp_path / "out"))
    card = (tmp_path / "out/README.md").read_text()
    assert "It is a standard InternVL folder" in card
    assert "InternVLForConditionalGeneration.from_pretrained" in card


@pytest.mark.parametrize("encoder", [INTERNVIT, {**DINOV2, "image_size": 48}], ids=["InternViT", "DINOv2"])
def test_it_comes_back_with_the_same_logits(
    encoder: dict[str, Any], build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    config = shuffled(build, {"kind": "hf", "config": encoder, "image_size": SIDE})
    model = exports.make_model(config, build)
    export_model(model, config, build, tmp_path / "out", step=1)

    loaded = trainer.load(tmp_path / "out")

    ids = exports.expanded(model, exports.chat_of(build))
    pixels = exports.pixels_of(exports.sample_images(), build)
    expected = exports.logits_of(model, ids, pixels)
    assert (exports.logits_of(loaded.model, ids, pixels) - expected).abs().max() < 1e-5


def test_the_text_config_has_the_keys_that_transformers_4_reads(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = shuffled(build, {"kind": "hf", "config": INTERNVIT})
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    text = json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    assert text["rope_theta"] == text["rope_parameters"]["rope_theta"]
    assert text["architectures"] == ["Qwen2ForCausalLM"]


GRANITE = {"config": {**SPARE_ROWS["config"], "model_type": "granite", "logits_scaling": 4.0}}


@pytest.mark.parametrize(
    ("encoder", "model", "why"),
    [
        ({"config": {**CLIP, "patch_size": 8}}, {}, "its encoder is clip_vision_model, InternVL's is InternViT or"),
        ({"config": {**SIGLIP, "patch_size": 8}}, {}, "its encoder is siglip_vision_model"),
        ({"kind": "open_clip", "config": OPEN_CLIP}, {}, "its encoder is open_clip"),
        ({"config": {**DINOV2, "use_swiglu_ffn": True}}, {}, "its encoder dinov2 has encoder.layer.0.mlp"),
        ({"config": INTERNVIT}, {"attention": "mmca"}, "MMCA"),
        ({"config": INTERNVIT}, {"decoder": GRANITE}, "scales its logits, InternVL does not"),
    ],
    ids=["CLIP", "SigLIP", "open_clip", "DINOv2 with SwiGLU", "mmca", "logit scale"],
)
def test_other_models_with_pixel_shuffle_are_no_internvl(
    encoder: dict[str, Any], model: dict[str, Any], why: str, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    encoder = {"kind": "hf", **encoder}
    build = build_of(**({"image_tokens": 1} if encoder["kind"] == "open_clip" else {}))
    config = shuffled(build, encoder, **model)
    done = export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    assert done.form == "dsvl"
    assert why in "; ".join(done.refusals)
    assert "its projector is pixel_shuffle, LLaVA's is mlp" in done.refusals
