"""A causal model's export is a standard LLaVA of transformers; any other is refused there with the reason."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from tests.support import exports, model_batches
from tests.support.exports import CLIP, OPEN_CLIP, SIDE, SIGLIP
from trainer.export import export as export_module
from trainer.export.export import export_model
from trainer.inference.conversation import Exchange, LoadedImage, messages_of, prompt_of
from trainer.inference.generate import Generator, Sampling
from trainer.model.decoder import PRESETS
from trainer.model_io.llava import llava_tensors, refusals

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)


QWEN = {"preset": "tiny_qwen2"}


SPARE_ROWS: dict[str, Any] = {  # more rows than the tokenizer has tokens
    "config": {
        "model_type": "llama",
        "vocab_size": 1300,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
}
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


@pytest.fixture
def timm_vit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Makes open_clip's timm a tiny ViT of SigLIP's shape, with what is different; returns the encoder's config."""
    timm: Any = pytest.importorskip("timm")
    vision_transformer: Any = timm.models.vision_transformer.VisionTransformer

    def vit(**different: Any) -> dict[str, Any]:
        sizes = {"img_size": SIDE, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4, "class_token": False}

        def create_model(name: str, *, pretrained: bool, **options: Any) -> Any:
            return vision_transformer(**{**sizes, **options, **different})

        monkeypatch.setattr(timm, "create_model", create_model)
        vision = {"image_size": SIDE, "timm_model_name": "small_siglip", "timm_pool": "map", "timm_proj": "none"}
        return {"kind": "open_clip", "config": {"embed_dim": 32, "vision_cfg": vision}}

    return vit


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
    images = tuple(
        LoadedImage(path=tmp_path, pixels=pixels) for pixels in exports.pixels_of(exports.sample_images(), build)
    )
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

    monkeypatch.setattr(export_module, "llava_tensors", damaged)
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
