"""Tiny models and builds for tests of export: every part random, weights large enough that logits tell them apart."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import shards
from dst import ChatTokenizer, Message, Template, load_tokenizer
from shards import Build
from shards.images.pixels import fit
from shards.typed_json import to_json
from tests.support import small_blends
from tests.support.model_batches import unlabelled
from trainer.checkpoint.frozen_fingerprint import frozen_elements
from trainer.config.extensions import model_extensions
from trainer.config.run import TrainConfig, config_from, to_tree
from trainer.export.export import export_model
from trainer.inference.images import LoadedImage, opened_image
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.digests import file_facts, sealed
from trainer.training.assemble import assemble

MakeBuild = Callable[..., Build]

SIDE = 32
CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 16,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
INTERNVIT: dict[str, Any] = {**CLIP, "model_type": "internvl_vision", "patch_size": 8}
DINOV2: dict[str, Any] = {**CLIP, "model_type": "dinov2", "patch_size": 8, "mlp_ratio": 2}
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 8, "patch_size": 16, "image_size": SIDE},
}
QUESTION: list[Message] = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which of the two is older?"}],
    }
]


def make_build(folder: Path, *, image_tokens: int = 4, **image: Any) -> Build:
    """Six samples of two images each."""
    names = small_blends.write_images(folder / "mine", 7)
    blend = small_blends.chat_blend(
        folder,
        [small_blends.chat_record(number, images=names[number : number + 2]) for number in range(6)],
        image_tokens=image_tokens,
        limits={"max_length": 256},
        image={"size": SIDE, "store": "resized", **image},
    )
    return shards.open(small_blends.build(blend).path)


def small_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A fixture."""
    return make_build(tmp_path_factory.mktemp("build"))


def small_export(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixture: an export of several weights files, of a build that is the fixture `build`."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    config = config_of(build, attention="mmca")
    export_model(make_model(config, build), config, build, folder, step=1, shard_bytes=250_000)
    return folder


def copied(exported: Path, tmp_path: Path) -> Path:
    """A fixture: a copy of the fixture `exported`, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def builds(tmp_path_factory: pytest.TempPathFactory) -> MakeBuild:
    """A fixture: builds by their settings, each made once."""
    made: dict[str, Build] = {}

    def build(**settings: Any) -> Build:
        name = json.dumps(settings, sort_keys=True)
        if name not in made:
            made[name] = make_build(tmp_path_factory.mktemp("build"), **settings)
        return made[name]

    return build


def config_of(build: Build, *, learning_rates: Mapping[str, Any] | None = None, **settings: Any) -> TrainConfig:
    """A causal model of CLIP, mlp and a tiny Llama; `encoder`, `projector`, `decoder`, `attention` change it."""
    model = {
        "encoder": {"kind": "hf", "config": CLIP},
        "projector": {"kind": "mlp"},
        "decoder": {"preset": "tiny_llama"},
        "attention": "causal",
    }
    parts = {name: settings.pop(name) for name in tuple(model) if name in settings}
    tree = {
        "build": build.store.location,
        "out": "out",
        "precision": "fp32",
        "model": {**model, **parts},
        "learning_rates": dict(learning_rates or {"projector": 1e-3}),
        **settings,
    }
    return config_from(tree, "train.yaml")


def make_model(config: TrainConfig, build: Build) -> VisionChatModel:
    """As a run builds it, adapters included, then every trained weight moved."""
    model = assemble(config, build.manifest.facts()).model
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model.eval()


ALL = {"encoder": 1e-3, "projector": 1e-3, "embeddings": 1e-3, "decoder": 1e-3}


def write_checkpoint(run: Path, model: VisionChatModel, config: TrainConfig, build: Build, *, step: int = 3) -> Path:
    """A checkpoint as two ranks of ZeRO-3 leave it: half of every trained parameter on each."""
    folder = run / f"checkpoints/step-{step:08d}"
    folder.mkdir(parents=True)
    held: list[dict[str, torch.Tensor]] = [{}, {}]
    parameters = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = parameter.detach().float().flatten()
            half = (len(flat) + 1) // 2
            held[0][f"weight/{name}"], held[1][f"weight/{name}"] = flat[:half].clone(), flat[half:].clone()
            pieces = [["rank-00000-000.safetensors", 0, half], ["rank-00001-000.safetensors", half, len(flat) - half]]
            parameters[name] = {"shape": list(parameter.shape), "pieces": pieces}
    for rank, tensors in enumerate(held):
        save_file(tensors, folder / f"rank-{rank:05d}-000.safetensors")
    content = {
        "version": 1,
        "step": step,
        "adam_step": step,
        "loss_scale": {},
        "manifest": build.manifest.hash,
        "loader": {},
        "config": to_tree(config),
        "parameters": parameters,
        "frozen": frozen_elements(model),
        **({"extensions": extensions} if (extensions := model_extensions(to_tree(config.model))) else {}),
        "files": {path.name: to_json(file_facts(path)) for path in sorted(folder.iterdir())},
    }
    (folder / "checkpoint.json").write_bytes(sealed(content, indent=1))
    (run / "checkpoints/latest").write_text(f"{folder.name}\n", encoding="utf-8")
    return folder


def chat_of(build: Build) -> ChatTokenizer:
    return ChatTokenizer(Template("visualchat", build.manifest.template), load_tokenizer(build.tokenizer_folder()))


def sample_images(size: tuple[int, int] = (50, 41)) -> list[Image.Image]:
    random = np.random.default_rng(3)
    pixels = (random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(2))
    return [Image.fromarray(image) for image in pixels]


def pixels_of(images: Sequence[Image.Image], build: Build) -> torch.Tensor:
    """uint8 [N, 3, S, S]"""
    geometry = build.manifest.config.image
    return torch.tensor(np.stack([np.asarray(fit(image, geometry)).transpose(2, 0, 1) for image in images]))


def loaded_images(images: Sequence[Image.Image], build: Build) -> tuple[LoadedImage, ...]:
    """As `chat` loads them from files."""
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        image.save(file, "PNG")
    return tuple(opened_image(file.getvalue(), build.manifest.config.image, Path()) for file in files)


def expanded(model: VisionChatModel, chat: ChatTokenizer) -> torch.Tensor:
    """The question's ids [1, T], images expanded."""
    ids = chat.encode(QUESTION, add_generation_prompt=True).ids
    runs = ([int(index)] * (model.image_tokens if index == model.image_id else 1) for index in ids)
    return torch.tensor([list(itertools.chain.from_iterable(runs))])


def logits_of(model: VisionChatModel, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """[1, T, V]"""
    firsts = (ids[0] == model.image_id).nonzero()[:: model.image_tokens, 0]
    slots = torch.stack([torch.zeros_like(firsts), firsts], dim=1)
    with torch.no_grad():
        return model.logits(unlabelled(ids, pixels, slots))


def llava(folder: Path, family: str = "Llava") -> Any:
    """The folder as transformers opens it, which must miss nothing in it and find nothing unknown."""
    transformers: Any = importlib.import_module("transformers")
    model_class = getattr(transformers, f"{family}ForConditionalGeneration")
    model, loading = model_class.from_pretrained(folder, output_loading_info=True)
    problems = {name: found for name, found in loading.items() if found}
    assert not problems
    return model


def processed(folder: Path, images: Sequence[Image.Image], **options: Any) -> Any:
    """The question and its images as transformers prepares them."""
    transformers: Any = importlib.import_module("transformers")
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    return processor(text=text, images=list(images), return_tensors="pt")


def check_is_llava(model: VisionChatModel, build: Build, out: Path, family: str = "Llava") -> None:
    """transformers alone gives the ids, pixels and logits of our model, for two images that have to be resized."""
    two = sample_images()
    inputs = processed(out, two, backend="pil")
    ids = expanded(model, chat_of(build))
    assert torch.equal(inputs["input_ids"], ids)
    with torch.no_grad():
        got = llava(out, family)(**inputs).logits
    expected = logits_of(model, ids, pixels_of(two, build))
    others = logits_of(model, ids, pixels_of(two[::-1], build))
    assert (expected - others).abs().max() > 0.01, "the images must matter"
    assert (got - expected).abs().max() < 1e-4


def names_in(folder: Path, file: str = "model.safetensors") -> list[str]:
    with safe_open(folder / file, framework="pt") as opened:
        return list(opened.keys())


def tensors_in(folder: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    with safe_open(folder / file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in names_in(folder, file)}
