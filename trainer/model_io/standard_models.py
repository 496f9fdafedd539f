"""The families of transformers that a trained model may be a member of: LLaVA, and InternVL for pixel shuffle.

A new family is an entry of STANDARD_MODELS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trainer.config.model import ModelConfig
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.internvl import as_internvl, internvl_config, internvl_names, internvl_refusals, internvl_tensors
from trainer.model_io.llava import as_llava, llava_config, llava_names, llava_tensors, refusals
from trainer.model_io.record import Form


class WriteConfig(Protocol):
    """config.json of a converted model."""

    def __call__(self, model: VisionChatModel, *, dtype: str) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardModel:
    """A family. `config` and `tensors` take what `convert` returned, `names` any model of the family."""

    form: Form
    title: str
    class_name: str
    """In transformers"""
    refusals: Callable[[VisionChatModel, ModelConfig], list[str]]
    """Why a model is not one, a clause each; empty if it is"""
    convert: Callable[[VisionChatModel], VisionChatModel]
    """The same model with an encoder of the family. Raises TrainError"""
    config: WriteConfig
    names: Callable[[VisionChatModel], dict[str, str]]
    """Our name of every tensor -> the family's"""
    tensors: Callable[[VisionChatModel], Iterator[tuple[str, torch.Tensor]]]
    """By the family's names"""


STANDARD_MODELS: dict[str, StandardModel] = {
    "llava": StandardModel(
        form="llava",
        title="LLaVA",
        class_name="LlavaForConditionalGeneration",
        refusals=refusals,
        convert=as_llava,
        config=llava_config,
        names=llava_names,
        tensors=llava_tensors,
    ),
    "internvl": StandardModel(
        form="internvl",
        title="InternVL",
        class_name="InternVLForConditionalGeneration",
        refusals=internvl_refusals,
        convert=as_internvl,
        config=internvl_config,
        names=internvl_names,
        tensors=internvl_tensors,
    ),
}


def standard_model(config: ModelConfig) -> StandardModel:
    """The only family that a model with this projector can be a member of."""
    return STANDARD_MODELS["internvl" if config.projector.kind == "pixel_shuffle" else "llava"]


def stored_names(form: Form, model: VisionChatModel) -> dict[str, str]:
    """Our name of a tensor -> its name in the files of an export of this form, where the two differ."""
    return STANDARD_MODELS[form].names(model) if form in STANDARD_MODELS else {}
