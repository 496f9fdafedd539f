"""After `import trainer`, transformers opens exports that are not LLaVA folders: same logits, same answers."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import trainer.compat  # before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch
from PIL import Image

import trainer
from shards import Build
from shards.images.tiles import ONE_TILE
from tests.support import auto_models, exports, model_batches
from tests.support.auto_models import MMCA, Written, opened
from tests.support.exports import CLIP, OPEN_CLIP, SIDE, SIGLIP
from trainer.export.export import export_model
from trainer.inference.conversation import Exchange, messages_of, prompt_of
from trainer.inference.generate import Generator, Sampling
from trainer.model.decoder import PRESETS
from trainer.model_io.own_config import MODEL_TYPE

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(exports.small_build)
written = pytest.fixture(auto_models.written)

LARGE = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 1300}
ALONE: dict[str, Any] = {"attention_types": [[["global"], 2]], "attention_layers": ["global"] * 2}


@pytest.mark.parametrize(
    "model",
    [
        *({**MMCA, "decoder": {"preset": preset}} for preset in sorted(PRESETS)),
        {"projector": {"kind": "perceiver", "num_queries": 4, "num_heads": 4}},
        {**MMCA, "projector": {"kind": "vit", "num_heads": 4}},
        {"projector": {"kind": "linear"}, "decoder": {"preset": "tiny_qwen2"}},
        {"encoder": {"kind": "hf", "config": {**CLIP, "model_type": "dinov2"}}},
        {**MMCA, "encoder": {"kind": "hf", "config": {**SIGLIP, "image_size": 64}, "image_size": SIDE}},
        {**MMCA, "encoder": {"kind": "open_clip", "config": OPEN_CLIP}},
        {"encoder": {"kind": "tiny", "config": {"image_size": SIDE, "patch_size": 16}}},
        {"decoder": {"config": {**LARGE, "model_type": "granite", "intermediate_size": 64, "logits_scaling": 4.0}}},
        {
            "projector": {"kind": "linear"},
            "decoder": {
                "attn_implementation": "eager",
                "config": {"model_type": "gpt_neo", "hidden_size": 64, "num_layers": 2, "num_heads": 4, **ALONE},
            },
        },
    ],
    ids=[
        *sorted(PRESETS),
        *("perceiver", "vit", "linear, tied", "dinov2", "SigLIP at another size", "open_clip", "tiny", "granite"),
        "gpt_neo, eager alone",
    ],
)
def test_the_auto_classes_give_the_logits_of_the_trained_model(
    model: dict[str, Any], build: Build, written: Written
) -> None:
    made, folder = written(**model)
    two = exports.sample_images()
    expected = exports.logits_of(
        made, ids := exports.expanded(made, exports.chat_of(build)), exports.pixels_of(two, build)
    )

    inputs = exports.processed(folder, two)
    with torch.no_grad():
        logits = opened(folder)(**inputs).logits

    assert transformers.AutoConfig.from_pretrained(folder).model_type == MODEL_TYPE
    assert torch.equal(inputs["input_ids"], ids)
    others = exports.logits_of(made, ids, exports.pixels_of(two[::-1], build))
    assert (expected - others).abs().max() > 1e-3, "the images must matter"
    assert (logits - expected).abs().max() < 1e-5


def asked(build: Build) -> tuple[list[list[Exchange]], list[list[Image.Image]]]:
    """Three conversations, and their images: several images, several rounds, and none."""
    images = [*exports.sample_images(), *exports.sample_images((20, 33))]
    loaded = exports.loaded_images(images, build)
    return [
        [
            Exchange(question="Which of the two is older?", images=loaded[:2], answer="The first."),
            Exchange(question="And this one?", images=loaded[2:3]),
        ],
        [Exchange(question="Why?")],
        [Exchange(question="What is it?", images=loaded[3:])],
    ], [images[:3], [], images[3:]]


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("model", [MMCA, {"projector": {"kind": "perceiver", "num_queries": 4, "num_heads": 4}}])
def test_generate_gives_the_answers_of_chat(
    model: dict[str, Any], use_cache: bool, build: Build, written: Written
) -> None:
    _, folder = written(**model)
    loaded = trainer.load(folder)
    conversations, images = asked(build)
    generator = Generator(loaded.model, loaded.chat_tokenizer)
    prompts = [prompt_of(exchanges, loaded, end_id=generator.end_id) for exchanges in conversations]
    expected = generator.batch(prompts, Sampling(max_new_tokens=12))
    assert len({token for answer in expected for token in answer}) > 5

    processor, auto = transformers.AutoProcessor.from_pretrained(folder), opened(folder)
    processor.tokenizer.padding_side = "left"
    texts = [processor.apply_chat_template(messages_of(each), add_generation_prompt=True) for each in conversations]
    inputs = processor(text=texts, images=[*chain.from_iterable(images)], padding=True, return_tensors="pt")
    said = auto.generate(**inputs, max_new_tokens=12, do_sample=False, use_cache=use_cache)
    answers = said[:, inputs["input_ids"].shape[1] :].tolist()
    assert [answer[: len(tokens)] for answer, tokens in zip(answers, expected, strict=True)] == expected


def test_every_answer_of_a_sequence_sees_the_images_of_that_sequence(build: Build, written: Written) -> None:
    _, folder = written(**MMCA)
    inputs = exports.processed(folder, exports.sample_images())
    auto = opened(folder)
    greedy = auto.generate(**inputs, max_new_tokens=6, do_sample=False)
    sampled = auto.generate(**inputs, max_new_tokens=6, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(sampled, greedy.expand(2, -1))
    beams = auto.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=3)
    slow = auto.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=3, use_cache=False)
    assert torch.equal(beams, slow)


def test_a_pipeline_answers_as_generate_does(build: Build, written: Written) -> None:
    _, folder = written(**MMCA)
    two = exports.sample_images()
    content = [*({"type": "image", "image": image} for image in two), {"type": "text", "text": "Which is older?"}]
    rounds = [{"role": "user", "content": content}]
    processor, auto = transformers.AutoProcessor.from_pretrained(folder), opened(folder)
    inputs = processor.apply_chat_template(
        rounds, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    said = auto.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]

    pipe = transformers.pipeline("image-text-to-text", model=str(folder), device="cpu")
    answer = pipe(text=rounds, max_new_tokens=6, return_full_text=False, generate_kwargs={"do_sample": False})

    assert answer[0]["generated_text"].strip() == processor.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_the_image_processor_gives_the_pixels_of_training_to_the_bit(fit: str, tmp_path: Path) -> None:
    build = exports.make_build(tmp_path, fit=fit)
    config = exports.config_of(build, **MMCA)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    loaded = trainer.load(tmp_path / "out")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    photo.save(tmp_path / "photo.png", exif=exif)

    from shards.loader import normalize
    from trainer.inference.images import load_image

    pixels = load_image(tmp_path / "photo.png", loaded.geometry).pixels(ONE_TILE)
    expected = normalize(pixels, loaded.model.encoder.mean, loaded.model.encoder.std)
    for options in ({}, {"backend": "pil"}):
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", **options)
        for image in (Image.open(tmp_path / "photo.png"), str(tmp_path / "photo.png")):
            actual = processor.image_processor(image, return_tensors="pt")["pixel_values"]
            assert torch.equal(actual, expected), options


def test_a_copy_that_transformers_saves_opens_again(build: Build, written: Written, tmp_path: Path) -> None:
    _, folder = written(**MMCA, decoder={"preset": "tiny_qwen2"})
    auto = opened(folder)
    auto.save_pretrained(tmp_path / "copy")
    transformers.AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "copy")
    inputs = exports.processed(folder, exports.sample_images())
    again = exports.processed(tmp_path / "copy", exports.sample_images())
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(opened(tmp_path / "copy")(**again).logits, auto(**inputs).logits)
    saved = json.loads((tmp_path / "copy/config.json").read_text())
    assert "this is not a LLaVA model" in saved["text_config"]["model_type"]


def test_the_precision_is_the_files_or_the_callers(build: Build, tmp_path: Path) -> None:
    config = exports.config_of(build, **MMCA)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1, precision="bf16")
    assert {parameter.dtype for parameter in opened(tmp_path / "out").parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in opened(tmp_path / "out", dtype="float32").parameters()} == {torch.float32}


def test_the_loss_is_that_of_the_labels(build: Build, written: Written) -> None:
    _, folder = written(**MMCA)
    inputs, auto = exports.processed(folder, exports.sample_images()), opened(folder)
    ids = inputs["input_ids"]
    labels = ids.masked_fill(ids == auto.config.image_token_id, -100)
    outputs = auto(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits[0, :-1], labels[0, 1:])
    assert torch.allclose(outputs.loss, expected)


def test_arguments_that_do_not_fit_are_refused(build: Build, written: Written) -> None:
    _, folder = written(**MMCA)
    inputs, auto = exports.processed(folder, exports.sample_images()), opened(folder)
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    with pytest.raises(ValueError, match="8 tokens of images, but 1 images need 4 each"):
        auto(input_ids=ids, pixel_values=pixels[:1])
    with pytest.raises(ValueError, match="both or neither of input_ids and inputs_embeds"):
        auto(pixel_values=pixels)
    with pytest.raises(ValueError, match=r"attention_mask is \[1, 3\]; expected"):
        auto(**{**inputs, "attention_mask": torch.ones(1, 3)})
    outputs = auto(**inputs, use_cache=True)
    cache = {name: outputs[name] for name in ("cache", "past_key_values") if outputs.get(name) is not None}
    with pytest.raises(ValueError, match="image_mask is none; expected bool"):
        auto(input_ids=ids[:, -1:], **cache)
    with pytest.raises(ValueError, match="inputs_embeds"):
        auto.generate(inputs_embeds=auto.get_input_embeddings()(ids), max_new_tokens=2)
