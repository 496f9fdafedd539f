"""A LLaVA folder of transformers, as others publish it: what a run that begins with it needs before weights are loaded.

Such a folder (https://huggingface.co/docs/transformers/model_doc/llava) has config.json with `model_type: llava`, a
`vision_config` and a `text_config`, the weights as safetensors, and the files of a tokenizer and a processor.

The rule: a setting that this project's model cannot compute is refused by name, as is any other family of models, so
that the model of the run has the logits of the folder's. Nothing here loads torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dst.errors import ConfigError
from shards.images.geometry import Fit, Interpolation
from trainer.config.model import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig, check_model_values
from trainer.model_io.record import INDEX, SINGLE

CONFIG = "config.json"

STANDARD = ("clip_vision_model", "siglip_vision_model")
"""The vision towers of LLaVA"""

FEATURE_LAYER = -2
"""The layer of the tower that LLaVA reads unless its config says otherwise"""

_ORIGIN = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "auto_map")

_HUB_ID = re.compile(r"[\w.-]*\w/[\w.-]+")
EXPECTED = "expected a folder that dsvl-train export wrote, or a LLaVA folder of transformers, or its id on the hub"
_PARTS_INSTEAD = "begin with its parts instead: model.decoder.name and model.encoder"
_OTHERS = {
    "llava_next": "LLaVA-NeXT, which cuts images into tiles",
    "llava_next_video": "LLaVA-NeXT-Video, which cuts images into tiles",
    "llava_onevision": "LLaVA-OneVision, which cuts images into tiles",
    "vipllava": "ViP-LLaVA, which reads several layers of its tower",
    "video_llava": "Video-LLaVA, which has a second tower for videos",
}
_FILTERS: dict[int, Interpolation] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderProcessor:
    """How the folder's image processor fits images; None for what its files do not say."""

    fit: Fit | None
    interpolation: Interpolation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaFolder:
    """A LLaVA folder, or a model of the hub in this form."""

    name: str
    """Of the folder or the hub, as the config has it"""
    model: ModelConfig
    processor: FolderProcessor
    digest: str
    """Of its configuration and of the list of its weights"""

    @property
    def title(self) -> str:
        """Its name without paths of this machine."""
        return model_title(self.name)


def model_title(name: str) -> str:
    """The name of a folder without its path, or the id of a model on the hub."""
    return Path(name).resolve().name if Path(name).exists() else name


def read_llava(name: str) -> LlavaFolder:
    """What the files of the folder or hub id say. Raises ConfigError if it is not such a folder, or cannot be read."""
    content = _read(name, CONFIG)
    config = _parsed(name, CONFIG, content)
    if refusal := _other_family(config):
        raise ConfigError([f"{name} is {refusal}"])
    settings = _processor_settings(name)
    model, problems = _model_config(config, settings)
    if problems:
        raise ConfigError([f"{name}: its {problem}" for problem in problems])
    digest = hashlib.sha256(content)
    digest.update(_weight_list(name))
    return LlavaFolder(name=name, model=model, processor=_folder_processor(settings), digest=digest.hexdigest())


def without_origin(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of transformers without the origin of its weights and the program that wrote it."""
    return {key: value for key, value in hf_config.items() if key not in _ORIGIN}


def local_file(name: str, file: str, *, required: bool = False) -> Path | None:
    """A file of the folder or of the hub's model; None if there is none. Raises ConfigError if `name` is neither."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    if not _HUB_ID.fullmatch(name):
        raise ConfigError([f"{name}: no such folder; {EXPECTED}"])
    from trainer.compat.transformers import hub_file, reason

    try:
        cached = hub_file(name, file, required=required)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{name}: no such folder, and not a model of the hub: {reason(error)}"]) from None
    return None if cached is None else Path(cached)


def _read(name: str, file: str) -> bytes:
    path = local_file(name, file, required=True)
    if path is None:
        raise ConfigError([f"{name}: has no {file}; {EXPECTED}"])
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror or error})"]) from None


def _parsed(name: str, file: str, content: bytes) -> Mapping[str, Any]:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{name}: its {file} is not JSON ({error}); download it again"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{name}: its {file} is not an object; download it again"])
    return tree


def _other_family(config: Mapping[str, Any]) -> str | None:
    """What it is instead of a LLaVA, and what to do; None if it is one."""
    model_type = config.get("model_type")
    if "mm_vision_tower" in config or (
        isinstance(model_type, str) and model_type.startswith(("llava_llama", "llava_q"))
    ):
        return (
            "a model of LLaVA's own repository, whose files have other names; expected its form for transformers, as "
            "llava-hf publishes it, or as transformers' convert_llava_weights_to_hf.py writes it"
        )
    if model_type == "llava":
        return None
    if not isinstance(model_type, str):
        return f"not a model of transformers: its {CONFIG} has no model_type; expected llava"
    if model_type in _OTHERS:
        return (
            f"a {model_type} model: {_OTHERS[model_type]}; expected llava (LLaVA-1.5 or LLaVA-Interleave); "
            f"{_PARTS_INSTEAD}"
        )
    if any(key in config for key in ("vision_config", "thinker_config", "visual")):
        return (
            f"a {model_type} model, another family of vision-language models; expected llava (LLaVA-1.5 or "
            f"LLaVA-Interleave); {_PARTS_INSTEAD}, or fine-tune it with a trainer of that family, such as ms-swift or "
            "LLaMA-Factory"
        )
    if "patch_size" in config:
        return f"a {model_type}, an encoder alone; set model.encoder: {{kind: hf, name: ...}} and model.decoder instead"
    return f"a {model_type}, a language model alone; set model.decoder.name and model.encoder instead"


def _model_config(config: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
    """The architecture, and problems, each a clause after "its"."""
    problems = []
    vision, text = config.get("vision_config"), config.get("text_config")
    vision = {"model_type": "clip_vision_model", **vision} if isinstance(vision, dict) else {}
    text = {"model_type": "llama", **text} if isinstance(text, dict) else {}
    if not vision or not text:
        problems.append(f"{CONFIG} lacks vision_config or text_config, which hold the sizes; download it again")
    elif vision["model_type"] not in STANDARD:
        problems.append(f"vision tower is a {vision['model_type']}; expected one of {', '.join(STANDARD)}")
    if config.get("tie_word_embeddings") is True:  # that of the text alone is overridden, as by transformers
        text["tie_word_embeddings"] = True
    layer = config.get("vision_feature_layer", FEATURE_LAYER)
    if type(layer) is not int or layer == 0:
        problems.append(f"vision_feature_layer is {layer!r}; expected one layer, such as -2")
    for key, expected in (("projector_hidden_act", "gelu"), ("multimodal_projector_bias", True)):
        if (value := config.get(key, expected)) != expected:
            problems.append(f"{key} is {value!r}; expected {expected!r}, as in LLaVA-1.5")
    has_cls = vision.get("model_type") == "clip_vision_model"
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        problems.append(f"vision_feature_select_strategy is {strategy!r}; expected default or full")
    elif strategy == "default" and vision.get("model_type") == "siglip_vision_model":
        problems.append(
            "vision_feature_select_strategy is 'default', which drops the first patch of a tower without a class "
            "token; expected full"
        )
    mean, std = _normalisation(settings, problems)
    if problems:
        return _NOTHING, problems
    model = ModelConfig(
        encoder=EncoderConfig(
            kind="hf",
            config=without_origin(vision),
            layer=layer,
            class_token=strategy == "full" and has_cls,
            mean=mean,
            std=std,
        ),
        projector=ProjectorConfig(kind="mlp"),
        decoder=DecoderConfig(config=without_origin(text)),
        attention="causal",
    )
    return model, [problem.replace("model.", "", 1) for problem in check_model_values(model)]


_LARGEST_NUMBER = 1e9
"""Of a mean or a standard deviation of pixels"""

_NOTHING = ModelConfig(encoder=EncoderConfig(), decoder=DecoderConfig())

_Triple = tuple[float, ...] | None


def _normalisation(settings: Mapping[str, Any], problems: list[str]) -> tuple[_Triple, _Triple]:
    """Mean and standard deviation of the image processor; None where the family's own are meant."""
    factor = settings.get("rescale_factor", 1 / 255)
    is_usual = isinstance(factor, float) and abs(factor - 1 / 255) < 1e-8
    if settings.get("do_rescale", True) is not True or not is_usual:
        problems.append("image processor does not scale pixels by 1/255, which dsvl does")
    if settings.get("do_normalize", True) is not True:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if mean is None or std is None:
        return None, None
    for name, values in (("image_mean", mean), ("image_std", std)):
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            problems.append(f"image processor's {name} is {values!r}; expected three numbers")
            return None, None
    return tuple(map(float, mean)), tuple(map(float, std))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _processor_settings(name: str) -> Mapping[str, Any]:
    """The image processor's settings: a file of their own, or a part of the processor's since transformers 5."""
    for file, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        path = local_file(name, file)
        if path is not None:
            tree = _parsed(name, file, path.read_bytes())
            settings = tree if key is None else tree.get(key)
            if isinstance(settings, dict):
                return settings
    return {}


def _folder_processor(settings: Mapping[str, Any]) -> FolderProcessor:
    fit: Fit | None = None
    size = settings.get("size")
    if settings.get("do_pad"):
        fit = "pad"
    elif settings.get("do_center_crop"):
        fit = "crop"
    elif isinstance(size, dict) and {"height", "width"} <= size.keys():
        fit = "squash"
    resample = settings.get("resample")
    return FolderProcessor(fit=fit, interpolation=_FILTERS.get(resample) if isinstance(resample, int) else None)


def _weight_list(name: str) -> bytes:
    """The index of the files of weights, or the head of the only one: names, shapes and places of all tensors."""
    if (index := local_file(name, INDEX)) is not None:
        return index.read_bytes()
    if (single := local_file(name, SINGLE)) is not None:
        with single.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return file.read(min(length, _LONGEST_HEAD))
    raise ConfigError(
        [
            f"{name}: has no weights as safetensors ({INDEX} or {SINGLE}); load it with transformers'"
            " LlavaForConditionalGeneration and save it again with save_pretrained"
        ]
    )


_LONGEST_HEAD = 100_000_000
"""Bytes; the safetensors format allows no longer one"""


def differing_fit(folder: LlavaFolder, fit: Fit, interpolation: Interpolation) -> Iterator[str]:
    """A line if the build fits images in another way than the folder's processor."""
    own = folder.processor
    if (own.fit in (None, fit)) and own.interpolation in (None, interpolation):
        return
    settings = f"fit: {own.fit or fit}, interpolation: {own.interpolation or interpolation}"
    yield (
        f"model.init_from: {folder.name} was trained on images with {settings}; this build has fit: {fit}, "
        f"interpolation: {interpolation}; for the same pixels rebuild with image: {{{settings}}}"
    )
