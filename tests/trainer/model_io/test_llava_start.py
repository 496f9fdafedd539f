"""A run begins with a LLaVA folder of others: same logits, trained, resumed, exported as a LLaVA again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch

from dst.errors import ConfigError
from tests.support import exports, llava_folders, llava_starts, model_batches, small_blends, train_runs
from tests.support.exports import SIGLIP
from tests.support.llava_folders import LLAMA, write_llava
from tests.support.llava_starts import config_file, edited, started
from trainer.export.export import export

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)
llava = pytest.fixture(scope="module")(llava_starts.llava)

QWEN = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True}
GEMMA = {**LLAMA, "model_type": "gemma", "head_dim": 8}
NEOX = {**LLAMA, "model_type": "gpt_neox"}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4}
FULL = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}


@pytest.mark.parametrize(
    ("parts", "image"),
    [
        ({}, {}),
        ({"names": "published"}, {}),
        ({"names": "of the module"}, {}),
        ({"max_shard_size": "30KB", "spare_rows": 60}, {}),
        ({"text": QWEN, "vision_feature_layer": 1}, {}),
        ({"text": QWEN, "vision": SIGLIP, **FULL}, {"fit": "squash"}),
        ({"text": GEMMA, "names": "published"}, {}),
        ({"text": MIXTRAL, "max_shard_size": "30KB"}, {}),
        ({"text": NEOX, "names": "published"}, {}),
        ({"vision_feature_select_strategy": "full"}, {"image_tokens": 5}),
    ],
    ids=[
        "llama",
        "names as published",
        "names as in memory",
        "sharded, spare rows",
        "tied, first layer",
        "SigLIP's last layer",
        "gemma",
        "experts",
        "a head and a base of other names",
        "class token",
    ],
)
def test_a_run_begins_with_the_logits_that_transformers_gives(
    parts: dict[str, Any], image: dict[str, Any], build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of(**image)
    original = write_llava(tmp_path / "llava", build, **parts)

    config, model = started(tmp_path, build, tmp_path / "llava", lora={"decoder": {"rank": 2}})

    assert config.model.attention == "causal"
    images = exports.sample_images()
    ids = exports.expanded(model, exports.chat_of(build))
    inputs = exports.processed(tmp_path / "llava", images, backend="pil") if not image else None
    pixels = exports.pixels_of(images, build)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.encoder.mean, model.encoder.std))
    with torch.no_grad():
        expected = original(input_ids=ids, pixel_values=(pixels / 255 - mean) / std).logits
    actual = exports.logits_of(model, ids, pixels)
    assert (actual[..., : expected.shape[2]] - expected).abs().max() < 1e-4
    others = exports.logits_of(model, ids, pixels.flip(0))
    assert (actual - others).abs().max() > 0.01, "the images must matter"
    if inputs is not None:  # the processor next to the weights says how pixels are normalised
        with torch.no_grad():
            assert (original(**inputs).logits - expected).abs().max() < 1e-4


def test_it_trains_resumes_and_comes_back_as_a_llava_folder(
    build_of: exports.MakeBuild, llava: Path, tmp_path: Path
) -> None:
    build = build_of()
    start = shutil.copytree(llava, tmp_path / "llava-tiny-hf")
    path = config_file(tmp_path / "run", build, start, lora={"decoder": {"rank": 2}})
    train_runs.train(path, "schedule.steps=1")
    train_runs.train(path)
    out = tmp_path / "run/out"
    assert len(train_runs.losses(out)) == 2

    export(out, tmp_path / "exported")
    trained = exports.llava(tmp_path / "exported")
    before = dict(exports.llava(start).named_parameters())
    changed = {
        name for name, weight in trained.named_parameters() if name in before and not torch.equal(weight, before[name])
    }
    assert "model.multi_modal_projector.linear_1.weight" in changed
    unread = ("encoder.layers.2.", "vision_tower.encoder.layers.2.", "post_layernorm")  # LLaVA reads layer -2
    moved = {name for name in changed if not any(part in name for part in unread)}
    assert moved
    assert all("projector" in name or ("language_model" in name and "_proj." in name) for name in moved)
    card = (tmp_path / "exported/README.md").read_text()
    assert "- model: llava-tiny-hf: (its licence)" in card
    assert str(tmp_path) not in card + (tmp_path / "exported/dsvl.json").read_text()

    start.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"model\.init_from: .*llava-tiny-hf"):
        export(out, tmp_path / "again")
    export(out, tmp_path / "again", init_from=str(tmp_path / "moved"))
    assert exports.tensors_in(tmp_path / "again").keys() == exports.tensors_in(tmp_path / "exported").keys()
    edited(tmp_path / "moved", image_seq_length=7)
    with pytest.raises(ConfigError, match="moved is not the model that the run began with; restore that folder"):
        export(out, tmp_path / "third", init_from=str(tmp_path / "moved"))


def test_mmca_may_be_trained_on_a_llava(build_of: exports.MakeBuild, llava: Path, tmp_path: Path) -> None:
    config, model = started(tmp_path, build_of(), llava, model={"attention": "mmca"})
    assert config.model.attention == model.attention == "mmca"


def test_an_id_of_the_hub_is_read_from_its_cache(
    build_of: exports.MakeBuild, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache/models--somebody--llava-tiny-hf"
    shutil.copytree(llava, cache / "snapshots/0123")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("0123")
    hub: Any = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    config, model = started(tmp_path, build_of(), "somebody/llava-tiny-hf")
    assert config.model.init_from == "somebody/llava-tiny-hf"
    _, local = started(tmp_path / "local", build_of(), llava)
    for (name, tensor), other in zip(model.state_dict().items(), local.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_a_folder_in_the_form_of_transformers_5_keeps_its_processor_in_one_file(
    build_of: exports.MakeBuild, llava: Path, tmp_path: Path
) -> None:
    start = shutil.copytree(llava, tmp_path / "llava")
    (start / "preprocessor_config.json").unlink()
    processor = {"processor_class": "LlavaProcessor", "image_processor": llava_folders.CLIP_PROCESSOR}
    (start / "processor_config.json").write_text(json.dumps(processor))
    config, _ = started(tmp_path, build_of(), start)
    assert config.model.encoder.mean == (0.48, 0.45, 0.4)


def test_images_that_the_model_saw_otherwise_are_noted_at_the_start(
    build_of: exports.MakeBuild, llava: Path, tmp_path: Path
) -> None:
    path = config_file(tmp_path, build_of(fit="squash"), llava)
    output = train_runs.train(path, "schedule.steps=1").output
    assert (
        f"note: model.init_from: {llava} was trained on images with fit: crop, interpolation: bicubic; this build has "
        "fit: squash, interpolation: bicubic; for the same pixels rebuild with image: {fit: crop, interpolation: "
        "bicubic}" in output
    )
    same = train_runs.train(config_file(tmp_path / "same", build_of(fit="crop"), llava), "schedule.steps=1").output
    assert "note:" not in same


def test_a_build_takes_the_tokenizer_of_the_folder(llava: Path, tmp_path: Path) -> None:
    blend = small_blends.chat_blend(
        tmp_path,
        [small_blends.chat_record(number) for number in range(4)],
        tokenizer=str(llava),
        image_tokens=4,
        limits={"max_length": 256},
        image={"size": exports.SIDE, "store": "resized"},
    )
    import shards

    build = shards.open(small_blends.build(blend).path)
    config, _ = started(tmp_path, build, llava)
    assert config.model.init_from == str(llava)
