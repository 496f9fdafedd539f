"""A causal model's export is a standard LLaVA of transformers: same logits, answers and pixels."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from collections.abc import Callable
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
from shards.loader import normalize
from tests.support import exports, llava_exports, model_batches
from tests.support.exports import CLIP, OPEN_CLIP, SIDE, SIGLIP
from tests.support.llava_exports import SPARE_ROWS
from trainer.export.export import export_model
from trainer.inference.conversation import Exchange, messages_of, prompt_of
from trainer.inference.generate import Generator, Sampling
from trainer.model.decoder import PRESETS

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)
timm_vit = pytest.fixture(llava_exports.timm_vit)

QWEN = {"preset": "tiny_qwen2"}
NEW_ROWS = {"config": {**SPARE_ROWS["config"], "model_type": "qwen2", "vocab_size": 1200, "tie_word_embeddings": False}}


@pytest.mark.parametrize(
    ("encoder", "decoder", "settings"),
    [
        ({"kind": "hf", "config": CLIP}, {"preset": "tiny_llama"}, {}),
        ({"kind": "hf", "config": CLIP}, QWEN, {}),
        ({"kind": "hf", "config": CLIP, "class_token": True, "layer": -1}, QWEN, {"image_tokens": 5}),
        ({"kind": "hf", "config": CLIP, "layer": 1}, SPARE_ROWS, {}),
        ({"kind": "hf", "config": {**CLIP, "image_size": 48}, "image_size": SIDE}, NEW_ROWS, {}),
        ({"kind": "hf", "config": SIGLIP}, {"preset": "tiny_llama"}, {"fit": "squash"}),
        ({"kind": "hf", "config": SIGLIP, "layer": -1}, QWEN, {"fit": "squash"}),
        ({"kind": "hf", "config": {**SIGLIP, "image_size": 64}, "image_size": SIDE}, QWEN, {"fit": "squash"}),
        ({"kind": "hf", "config": {**SIGLIP, "image_size": 40}}, QWEN, {"fit": "squash", "size": 40}),
        ({"kind": "open_clip", "config": OPEN_CLIP}, {"preset": "tiny_llama"}, {}),
        (
            {"kind": "open_clip", "config": {**OPEN_CLIP, "quick_gelu": True}, "class_token": True},
            QWEN,
            {"image_tokens": 5},
        ),
    ],
    ids=[
        "CLIP, untied",
        "CLIP, tied",
        "CLIP with its class token, last layer",
        "CLIP, first layer, spare rows",
        "CLIP at another size, new rows",
        "SigLIP, untied",
        "SigLIP, last layer",
        "SigLIP at another size",
        "SigLIP whose patches leave a rest of the image",
        "open_clip",
        "open_clip with quick GELU and class token",
    ],
)
def test_a_causal_model_is_a_llava_with_the_same_logits(
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    settings: dict[str, Any],
    build_of: exports.MakeBuild,
    tmp_path: Path,
) -> None:
    build = build_of(**settings)
    config = exports.config_of(build, encoder=encoder, decoder=decoder, learning_rates=exports.ALL)
    model = exports.make_model(config, build)

    done = export_model(model, config, build, tmp_path / "out", step=1)

    assert (done.form, done.refusals) == ("llava", ())
    exports.check_is_llava(model, build, tmp_path / "out")


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_decoder_is_part_of_a_llava(preset: str, build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build, decoder={"preset": preset}, learning_rates=exports.ALL)
    model = exports.make_model(config, build)

    export_model(model, config, build, tmp_path / "out", step=1)

    exports.check_is_llava(model, build, tmp_path / "out")


@pytest.mark.parametrize("different", [{}, {"act_layer": "gelu_tanh"}], ids=["gelu", "gelu_tanh"])
def test_siglip_of_open_clip_is_a_llava_too(
    different: dict[str, Any],
    timm_vit: Callable[..., dict[str, Any]],
    build_of: exports.MakeBuild,
    tmp_path: Path,
) -> None:
    build = build_of(fit="squash")
    config = exports.config_of(build, encoder=timm_vit(**different), decoder=QWEN, learning_rates=exports.ALL)
    model = exports.make_model(config, build)

    done = export_model(model, config, build, tmp_path / "out", step=1)

    assert (done.form, done.refusals) == ("llava", ())
    assert exports.llava(tmp_path / "out").config.vision_config.model_type == "siglip_vision_model"
    exports.check_is_llava(model, build, tmp_path / "out")


@pytest.mark.parametrize("padded", [False, True], ids=["alone", "in a batch"])
def test_transformers_generates_the_answers_that_chat_gives(
    padded: bool, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    config = exports.config_of(build, learning_rates=exports.ALL)
    model = exports.make_model(config, build)
    export_model(model, config, build, tmp_path / "out", step=1)
    loaded = trainer.load(tmp_path / "out")
    generator = Generator(loaded.model, loaded.chat_tokenizer)
    question = "Which of the two is older?"
    images = exports.loaded_images(exports.sample_images(), build)
    asked = [Exchange(question=question, images=images), *[Exchange(question="Why?")] * padded]
    prompts = [prompt_of([exchange], loaded, end_id=generator.end_id) for exchange in asked]
    expected = generator.batch(prompts, Sampling(max_new_tokens=8))

    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    processor.tokenizer.padding_side = "left"  # as the model card says
    texts = [processor.apply_chat_template(messages_of([exchange]), add_generation_prompt=True) for exchange in asked]
    inputs = processor(text=texts, images=exports.sample_images(), padding=True, return_tensors="pt")
    said = exports.llava(tmp_path / "out").generate(**inputs, max_new_tokens=8, do_sample=False)
    answers = said[:, inputs["input_ids"].shape[1] :].tolist()
    assert [answer[: len(tokens)] for answer, tokens in zip(answers, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ({"fit": "crop"}, (61, 40)),
        ({"fit": "crop", "interpolation": "bilinear"}, (20, 33)),
        ({"fit": "squash", "interpolation": "lanczos"}, (61, 40)),
        ({"fit": "pad"}, (61, 40)),
        ({"fit": "pad", "interpolation": "bilinear"}, (20, 33)),
    ],
    ids=["crop", "crop, enlarged", "squash", "pad", "pad, enlarged"],
)
def test_the_processor_gives_the_pixels_of_training(
    image: dict[str, str], size: tuple[int, int], build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**image)
    config = exports.config_of(build)
    model = exports.make_model(config, build)
    export_model(model, config, build, tmp_path / "out", step=1)
    mean, std = model.encoder.mean, model.encoder.std

    cases = [(size, {"backend": "pil"}, 1e-6), ((SIDE, SIDE), {}, 1e-6)]
    card = (tmp_path / "out/README.md").read_text()
    if image.get("interpolation") == "lanczos":  # what the default does instead depends on torchvision's version
        assert "the default backend has no Lanczos filter of its own" in card
    else:
        assert "by up to 1/255" in card
        cases.append((size, {}, 1.01 / 255 / min(std)))
    for drawn, options, tolerance in cases:
        images = exports.sample_images(drawn)
        expected = normalize(exports.pixels_of(images, build), mean, std, torch.float32)
        got = exports.processed(tmp_path / "out", images, **options)["pixel_values"]
        assert (got - expected).abs().max() <= tolerance, options


def test_another_padding_colour_than_the_encoders_mean_is_on_the_card(
    build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of(fit="pad", pad_colour="black")
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)

    card = (tmp_path / "out/README.md").read_text()
    assert "(122, 116, 104) here" in card
    assert "(0, 0, 0) in training" in card
