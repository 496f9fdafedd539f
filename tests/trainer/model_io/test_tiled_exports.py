"""Exports of models that see tiles: transformers gives the ids, pixels and logits of chat, for images of any shape."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

import trainer
from dst import load_tokenizer
from tests.support import auto_models, exports, model_batches
from tests.support.exports import CLIP, DINOV2, INTERNVIT, SIGLIP
from tests.support.tiled_exports import (
    ONE,
    SMALL,
    TWO,
    as_chat_sees,
    as_transformers_sees,
    check_same,
    drawn,
    exchange_of,
    processor_of,
)
from trainer.export.export import export_model
from trainer.inference.conversation import messages_of, prompt_of
from trainer.inference.generate import Generator, Sampling

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)

TILED: dict[str, Any] = {"fit": "squash", "tiles": 6, "tiles_multi": 6}
SHUFFLE: dict[str, Any] = {"projector": {"kind": "pixel_shuffle"}}


def exported(build: Any, folder: Path, **model: Any) -> Any:
    """Exports a model with these parts; returns what was exported."""
    config = exports.config_of(build, learning_rates=exports.ALL, **model)
    return export_model(exports.make_model(config, build), config, build, folder, step=1)


@pytest.mark.parametrize("sizes", [ONE, TWO, SMALL], ids=["wide", "high and wide", "small"])
@pytest.mark.parametrize(
    ("model", "form"),
    [
        ({"encoder": {"kind": "hf", "config": CLIP}}, "llava"),
        ({"encoder": {"kind": "hf", "config": SIGLIP}, "decoder": {"preset": "tiny_qwen2"}}, "llava"),
        ({"encoder": {"kind": "hf", "config": INTERNVIT}, **SHUFFLE}, "internvl"),
        ({"encoder": {"kind": "hf", "config": DINOV2}, **SHUFFLE}, "internvl"),
    ],
    ids=["CLIP", "SigLIP", "InternViT", "DINOv2"],
)
def test_transformers_alone_sees_the_tiles_that_chat_sees(
    model: dict[str, Any], form: str, sizes: Any, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**TILED)
    done = exported(build, tmp_path / "out", **model)
    assert (done.form, done.refusals) == (form, ())
    images = drawn(sizes)

    expected = as_chat_sees(tmp_path / "out", images, build)
    opened = exports.llava(tmp_path / "out", {"llava": "Llava", "internvl": "InternVL"}[form])

    assert len(expected.pixels) > len(images) or sizes == SMALL, "there must be tiles"
    check_same(as_transformers_sees(tmp_path / "out", images, build, opened), expected)


def test_several_images_get_the_tiles_of_training_if_the_caller_says_how_many(
    build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**{**TILED, "tiles_multi": 2})
    exported(build, tmp_path / "out")
    opened = exports.llava(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "For several images in a prompt pass `max_patches=2` to it" in card
    for sizes, options in ((ONE, {}), (TWO, {"max_patches": 2})):
        images = drawn(sizes)
        expected = as_chat_sees(tmp_path / "out", images, build)
        check_same(as_transformers_sees(tmp_path / "out", images, build, opened, **options), expected)


def test_the_processor_of_the_card_adds_no_token_that_texts_have(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of(**TILED)
    exported(build, tmp_path / "out")
    tokenizer = processor_of(tmp_path / "out").tokenizer
    assert len(tokenizer) == load_tokenizer(tmp_path / "out").vocabulary_size + 1, "the name of videos alone is new"
    text = "<s>A text, <img> and </img> and <video>.</s>"
    ids = load_tokenizer(tmp_path / "out").encode([text])[0]
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert (
        'AutoImageProcessor.from_pretrained("path/of/this/folder", backend="pil")'
        in (tmp_path / "out/README.md").read_text()
    )


def test_the_default_backend_differs_by_rounding_alone(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of(**TILED)
    exported(build, tmp_path / "out")
    images, processor = drawn(ONE), transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    expected = as_chat_sees(tmp_path / "out", images, build)
    text = processor.apply_chat_template(messages_of([exchange_of(images, build)]), add_generation_prompt=True)
    got = processor(text=text, images=images, return_tensors="pt")
    assert torch.equal(got["input_ids"], expected.ids)
    std = min(trainer.load(tmp_path / "out").model.encoder.std)
    assert (got["pixel_values"] - expected.pixels).abs().max() <= 1.01 / 255 / std


@pytest.mark.parametrize(
    ("model", "image", "why"),
    [
        ({"attention": "mmca"}, TILED, "MMCA"),
        ({"encoder": {"kind": "hf", "config": {**CLIP, "patch_size": 8}}, **SHUFFLE}, TILED, "InternVL's is InternViT"),
        ({}, {**TILED, "fit": "pad"}, "its images are cut into tiles with fit: pad, transformers does it with squash"),
        ({}, {**TILED, "grid": "resolution"}, "cut into tiles with grid: resolution"),
        ({"attention": "mmca"}, {**TILED, "tiles_multi": 2, "tiles": 4}, "MMCA"),
    ],
    ids=["MMCA", "pixel shuffle of CLIP", "pad", "grids of LLaVA-NeXT", "fewer for several images"],
)
def test_after_importing_trainer_transformers_sees_the_tiles_of_every_other_model(
    model: dict[str, Any], image: dict[str, Any], why: str, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**image)
    done = exported(build, tmp_path / "out", **model)
    assert done.form == "dsvl"
    assert why in "; ".join(done.refusals)
    opened = auto_models.opened(tmp_path / "out")
    for sizes in (ONE, TWO, SMALL):
        images = drawn(sizes)
        expected = as_chat_sees(tmp_path / "out", images, build)
        check_same(as_transformers_sees(tmp_path / "out", images, build, opened), expected)


@pytest.mark.parametrize(
    ("attention", "tiles_multi"), [("mmca", 2), ("causal", 6)], ids=["after import trainer", "transformers alone"]
)
def test_a_batch_of_prompts_with_tiles_gets_the_answers_of_chat(
    attention: str, tiles_multi: int, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**{**TILED, "tiles_multi": tiles_multi})
    exported(build, tmp_path / "out", attention=attention)
    loaded = trainer.load(tmp_path / "out")
    generator = Generator(loaded.model, loaded.chat_tokenizer)
    exchanges = [exchange_of(drawn(sizes), build) for sizes in (ONE, TWO)]
    prompts = [prompt_of([exchange], loaded, end_id=generator.end_id) for exchange in exchanges]
    expected = generator.batch(prompts, Sampling(max_new_tokens=8))

    processor = processor_of(tmp_path / "out")
    processor.tokenizer.padding_side = "left"
    texts = [processor.apply_chat_template(messages_of([each]), add_generation_prompt=True) for each in exchanges]
    inputs = processor(text=texts, images=[*drawn(ONE), *drawn(TWO)], padding=True, return_tensors="pt")
    said = auto_models.opened(tmp_path / "out").generate(**inputs, max_new_tokens=8, do_sample=False)
    answers = said[:, inputs["input_ids"].shape[1] :].tolist()
    assert [answer[: len(tokens)] for answer, tokens in zip(answers, expected, strict=True)] == expected
