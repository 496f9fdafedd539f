"""Exported folders: a standard LLaVA where a model is one, and a clear refusal where it is not."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from trainer.torchvision_operators import declare_operators

declare_operators()
transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError, safe_open

import exports
import model_batches
import train_runs
from dst.errors import ConfigError
from exports import CLIP, OPEN_CLIP, SIDE, SIGLIP
from shards import Build, ShardError
from shards.batch import normalize
from trainer import export as export_module
from trainer.cli import cli
from trainer.errors import TrainError
from trainer.export import export, export_model
from trainer.export_llava import refusals
from trainer.model import VisionChatModel
from trainer.weight_files import WeightFiles, write_weights

MakeBuild = Callable[..., Build]

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


@pytest.fixture(scope="module")
def build_of(tmp_path_factory: pytest.TempPathFactory) -> MakeBuild:
    """Builds by their settings, each made once."""
    made: dict[str, Build] = {}

    def build(**settings: Any) -> Build:
        name = json.dumps(settings, sort_keys=True)
        if name not in made:
            made[name] = exports.make_build(tmp_path_factory.mktemp("build"), **settings)
        return made[name]

    return build


def llava(folder: Path) -> Any:
    model, loading = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    problems = {name: found for name, found in loading.items() if found}
    assert not problems
    return model


def processed(folder: Path, pictures: list[Image.Image], **options: Any) -> Any:
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    text = processor.apply_chat_template(exports.QUESTION, add_generation_prompt=True)
    return processor(text=text, images=pictures, return_tensors="pt")


def check_is_llava(model: VisionChatModel, build: Build, out: Path) -> None:
    """transformers alone gives the ids, pixels and logits of our model, for two pictures that have to be resized."""
    pictures = exports.pictures()
    inputs = processed(out, pictures, backend="pil")
    ids = exports.expanded(model, exports.chat_of(build))
    assert torch.equal(inputs["input_ids"], ids)
    with torch.no_grad():
        got = llava(out)(**inputs).logits
    wanted = exports.logits_of(model, ids, exports.pixels_of(pictures, build))
    others = exports.logits_of(model, ids, exports.pixels_of(pictures[::-1], build))
    assert (wanted - others).abs().max() > 0.01, "the pictures must matter"
    assert (got - wanted).abs().max() < 1e-4


QWEN = {"preset": "tiny_qwen2"}
SPARE_ROWS = {
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
        ({"kind": "hf", "config": CLIP, "cls": True, "layer": -1}, QWEN, {"image_tokens": 5}),
        ({"kind": "hf", "config": CLIP, "layer": 1}, SPARE_ROWS, {}),
        ({"kind": "hf", "config": {**CLIP, "image_size": 48}, "image_size": SIDE}, NEW_ROWS, {}),
        ({"kind": "hf", "config": SIGLIP}, {"preset": "tiny_llama"}, {"fit": "squash"}),
        ({"kind": "hf", "config": SIGLIP, "layer": -1}, QWEN, {"fit": "squash"}),
        ({"kind": "hf", "config": {**SIGLIP, "image_size": 64}, "image_size": SIDE}, QWEN, {"fit": "squash"}),
        ({"kind": "open_clip", "config": OPEN_CLIP}, {"preset": "tiny_llama"}, {}),
        ({"kind": "open_clip", "config": {**OPEN_CLIP, "quick_gelu": True}, "cls": True}, QWEN, {"image_tokens": 5}),
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
        "open_clip",
        "open_clip with quick GELU and class token",
    ],
)
def test_a_causal_model_is_a_llava_with_the_same_logits(
    encoder: dict[str, Any], decoder: dict[str, Any], settings: dict[str, Any], build_of: MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**settings)
    config = exports.config_of(build, encoder=encoder, decoder=decoder, train=exports.ALL)
    model = exports.make_model(config, build)

    done = export_model(model, config, build, tmp_path / "out", step=1)

    assert (done.form, done.refusals) == ("llava", ())
    check_is_llava(model, build, tmp_path / "out")


@pytest.mark.parametrize(
    "encoder", [{"kind": "hf", "config": CLIP}, {"kind": "open_clip", "config": OPEN_CLIP}], ids=["hf", "open_clip"]
)
def test_a_checkpoint_of_two_ranks_is_exported_with_its_adapters_merged(
    encoder: dict[str, Any], build_of: MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    targets = "all-linear" if encoder["kind"] == "hf" else ["attn", "c_fc"]
    lora = {"decoder_lora": {"rank": 2, "targets": ["q_proj", "down_proj"]}, "encoder_lora": {"targets": targets}}
    config = exports.config_of(build, encoder=encoder, decoder=QWEN, train={"projector": 1e-3, **lora})
    model = exports.make_model(config, build)
    exports.write_checkpoint(tmp_path / "run", model, config, build)

    export(tmp_path / "run", tmp_path / "out")

    assert not any("lora" in name for name in names_in(tmp_path / "out"))
    check_is_llava(model, build, tmp_path / "out")


def test_base_weights_that_no_adapter_touches_do_not_drift(build_of: MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build, train={"projector": 1e-3, "decoder_lora": {"targets": ["q_proj"]}})
    model = exports.make_model(config, build)
    decoder: Any = model.decoder
    base = dict(decoder.named_parameters())
    exports.write_checkpoint(tmp_path / "run", model, config, build)

    export(tmp_path / "run", tmp_path / "out")

    stored = tensors_in(tmp_path / "out")
    kept = [name for name in base if "lora_" not in name and "q_proj" not in name]
    assert kept
    for name in kept:
        assert torch.equal(stored[f"language_model.{name}"], base[name])
    adapter = decoder.model.layers[0].self_attn.q_proj
    merged = adapter.base_layer.weight + adapter.get_delta_weight("default")
    assert torch.equal(stored["language_model.model.layers.0.self_attn.q_proj.weight"], merged)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_stored_in_the_precision_asked_for(
    precision: str, dtype: torch.dtype, build_of: MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    config = exports.config_of(build)
    model = exports.make_model(config, build)

    export_model(model, config, build, tmp_path / "out", step=1, precision=precision)

    assert {tensor.dtype for tensor in tensors_in(tmp_path / "out").values()} == {dtype}
    assert llava(tmp_path / "out").dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, (
        "the model itself must stay as it was"
    )


def test_several_files_of_weights_have_an_index(build_of: MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    model = exports.make_model(config, build)

    export_model(model, config, build, tmp_path / "out", step=1, shard_bytes=100_000)

    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert {name: file for file in files for name in names_in(tmp_path / "out", file)} == index["weight_map"]
    check_is_llava(model, build, tmp_path / "out")


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    max_bytes=st.integers(1, 200),
    half=st.booleans(),
)
def test_weights_come_back_however_they_are_cut_into_files(sizes: list[int], max_bytes: int, half: bool) -> None:
    tensors = {f"layer.{number}": torch.randn(size) for number, size in enumerate(sizes)}
    if half:
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = write_weights(Path(folder), tensors.items(), max_bytes=max_bytes)
        assert sorted(files) == sorted(os.listdir(folder))
        found = WeightFiles(Path(folder))
        for name, tensor in tensors.items():
            assert torch.equal(found.read(name), tensor)
        for file in files:
            if file.endswith(".safetensors"):
                held = [tensors[name].nbytes for name in names_in(Path(folder), file)]
                assert sum(held) <= max_bytes or len([size for size in held if size]) == 1


def test_tokenizer_files_are_those_of_the_build_to_the_byte(build_of: MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)

    files = sorted(build.tokenizer_folder().iterdir())
    assert {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"} <= {file.name for file in files}
    for file in files:
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("attention", ["causal", "mmca"])
def test_the_exported_tokenizer_writes_the_templates_text(attention: str, build_of: MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build, attention=attention)
    model = exports.make_model(config, build)
    export_model(model, config, build, tmp_path / "out", step=1)
    chat = exports.chat_of(build)
    rounds = [*exports.QUESTION, {"role": "assistant", "content": "The first."}, {"role": "user", "content": "Why?"}]

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")

    wanted = chat.render(rounds, add_generation_prompt=True).text
    assert tokenizer.apply_chat_template(rounds, add_generation_prompt=True, tokenize=False) == wanted
    assert processor.apply_chat_template(rounds, add_generation_prompt=True) == wanted
    inputs = processor(
        text=chat.render(exports.QUESTION, add_generation_prompt=True).text,
        images=exports.pictures(),
        return_tensors="pt",
    )
    assert torch.equal(inputs["input_ids"], exports.expanded(model, chat))


@pytest.mark.parametrize(
    ("image", "size"),
    [
        ({"fit": "crop"}, (61, 40)),
        ({"fit": "crop", "interpolation": "bilinear"}, (20, 33)),
        ({"fit": "squash", "interpolation": "lanczos"}, (61, 40)),
        ({"fit": "pad"}, (45, 45)),
    ],
    ids=["crop", "crop, enlarged", "squash", "pad, of a square picture"],
)
def test_the_processor_gives_the_pixels_of_training(
    image: dict[str, str], size: tuple[int, int], build_of: MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**image)
    config = exports.config_of(build)
    model = exports.make_model(config, build)
    export_model(model, config, build, tmp_path / "out", step=1)
    mean, std = model.encoder.mean, model.encoder.std

    for pictures, options, tolerance in (
        (exports.pictures(size), {"backend": "pil"}, 1e-6),
        (exports.pictures(size), {}, 1.01 / 255 / min(std)),
        (exports.pictures((SIDE, SIDE)), {}, 1e-6),
    ):
        wanted = normalize(exports.pixels_of(pictures, build), mean, std, torch.float32)
        got = processed(tmp_path / "out", pictures, **options)["pixel_values"]
        assert (got - wanted).abs().max() <= tolerance, options


def test_where_the_processor_cannot_be_exact_the_card_says_so(build_of: MakeBuild, tmp_path: Path) -> None:
    build = build_of(fit="pad", pad_colour="black")
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)

    card = (tmp_path / "out/README.md").read_text()
    assert "padded before they are resized" in card
    assert "(122, 116, 104) here" in card
    assert "(0, 0, 0) in training" in card


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"attention": "mmca"}, "attends to text and to images apart (MMCA)"),
        ({"projector": {"kind": "linear"}}, "projector is linear"),
        ({"projector": {"kind": "perceiver", "queries": 4, "heads": 4}}, "projector is perceiver"),
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
def test_what_is_no_llava_is_refused_by_transformers_with_the_reason(
    model: dict[str, Any], reason: str, build_of: MakeBuild, tmp_path: Path
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
        with pytest.raises((ValueError, KeyError), match="this is no LLaVA model") as caught:  # by release
            plain.from_pretrained(tmp_path / "out")
        assert reason in str(caught.value)
        assert "trainer.load" in str(caught.value)
    for auto in (transformers.AutoConfig, transformers.AutoModelForImageTextToText):
        with pytest.raises(ValueError, match=r"is-not-llava-open-it-with-trainer\.load"):
            auto.from_pretrained(tmp_path / "out")


def test_answers_end_where_training_ended_them(build_of: MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)

    chat = exports.chat_of(build)
    encoded = chat.encode([*exports.QUESTION, {"role": "assistant", "content": "The first."}])
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert encoded.ids[encoded.trained[0][1] - 1] in found.eos_token_id
    assert chat.tokenizer.decode([found.pad_token_id]) == chat.tokenizer.eos_token


def test_the_model_card_names_data_and_training(build_of: MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "my-model", step=1234)

    card = (tmp_path / "my-model/README.md").read_text()
    tokens = build.manifest.content["datasets"]["mine"]["tokens"]
    assert build.manifest.hash in card
    assert f"| mine | chat | 6 | 12 | {tokens:,} |" in card
    assert "# my-model" in card
    assert "1,234 optimizer steps" in card
    assert "preset: tiny_llama" in card
    assert "dataset: mine: (its licence)" in card
    assert build.store.location not in card


def test_a_folder_that_is_not_empty_is_left_alone(build_of: MakeBuild, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    build = build_of()
    config = exports.config_of(build)
    with pytest.raises(ConfigError, match="already and not an empty folder"):
        export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=lambda error: type(error).__name__,
)
def test_an_export_that_fails_midway_leaves_nothing(
    error: Exception, build_of: MakeBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> str:
        raise error

    monkeypatch.setattr(export_module, "model_card", full)
    build = build_of()
    config = exports.config_of(build)
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainError, match="No space left on device"):
        export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())


def test_an_edited_tokenizer_of_the_build_is_not_exported(tmp_path: Path) -> None:
    build = exports.make_build(tmp_path)
    config = exports.config_of(build)
    model = exports.make_model(config, build)
    template = Path(build.store.location) / "tokenizer/chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ShardError, match="edited"):
        export_model(model, config, build, tmp_path / "out", step=1)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run(build_of: MakeBuild, tmp_path: Path) -> Path:
    """A run's folder with a checkpoint."""
    build = build_of()
    config = exports.config_of(build)
    exports.write_checkpoint(tmp_path / "run", exports.make_model(config, build), config, build)
    return tmp_path / "run"


def test_the_command_exports_a_run_or_one_checkpoint(run: Path, tmp_path: Path) -> None:
    for number, location in enumerate((run, run / "checkpoints/step-00000003")):
        out = tmp_path / f"out-{number}"
        done = CliRunner().invoke(cli, ["export", "--checkpoint", str(location), "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert "a LLaVA folder" in done.stdout
        assert llava(out).dtype == torch.float32


def test_a_moved_build_is_found_by_its_option(run: Path, tmp_path: Path, build_of: MakeBuild) -> None:
    place = run / "checkpoints/step-00000003/checkpoint.json"
    content = json.loads(place.read_text())
    content["config"]["build"] = str(tmp_path / "gone")
    place.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"gone.*--build"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out", build=build_of().store.location)
    with pytest.raises(ConfigError, match="its manifest is"):
        export(run, tmp_path / "other", build=build_of(image_tokens=5).store.location)


def test_a_checkpoint_that_is_missing_newer_or_damaged_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint there"):
        export(tmp_path, tmp_path / "out")
    folder = run / "checkpoints/step-00000003"
    shard = folder / "rank-00001-000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TrainError, match=r"rank-00001-000\.safetensors: the checkpoint is damaged"):
        export(run, tmp_path / "out")
    shard.unlink()
    with pytest.raises(TrainError, match="rank-00001-000"):
        export(run, tmp_path / "out")
    place = folder / "checkpoint.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "version": 99}))
    with pytest.raises(ConfigError, match=r"newer.*update dsvl"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_of_zero_3_on_two_ranks_is_exported_with_only_what_learnt_has_moved(tmp_path: Path) -> None:
    build = train_runs.compiled(tmp_path / "data")
    config = train_runs.config_file(
        tmp_path / "run",
        build,
        model={"attention": "causal", "encoder": {"kind": "hf", "config": CLIP}, "projector": {"kind": "mlp"}},
        train={"embeddings": None, "decoder": None, "decoder_lora": {"rank": 4}, "encoder_lora": {"rank": 2}},
        zero={"stage": 3, "persistence_threshold": 0},
        precision="bf16",
        schedule={"steps": 2},
        checkpoints={"every": 1},
    )
    train_runs.train(config, ranks=2)

    before = export(tmp_path / "run/out/checkpoints/step-00000001", tmp_path / "before", precision="fp32")
    after = export(tmp_path / "run/out", tmp_path / "after", precision="fp32")

    assert before.form == after.form == "llava"
    first, last = tensors_in(before.folder), tensors_in(after.folder)
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert any("q_proj" in name and "language" in name for name in moved)
    assert any("q_proj" in name and "vision" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)
    assert not any("norm" in name or "embed" in name for name in moved)
    llava(after.folder)


def names_in(folder: Path, file: str = "model.safetensors") -> list[str]:
    with safe_open(folder / file, framework="pt") as opened:
        return list(opened.keys())


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in names_in(folder)}
