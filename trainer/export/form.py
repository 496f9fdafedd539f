"""What makes an export a folder of LLaVA, InternVL or dsvl: names of the weights, config.json and the processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shards import Build
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.llava import llava_expansion
from trainer.model_io.own_config import own_config
from trainer.model_io.processor import (
    PREPROCESSOR,
    PROCESSOR,
    PROCESSOR_CLASS,
    is_tiled,
    own_preprocessor_config,
    plain_expansion,
    preprocessor_config,
    processor_config,
)
from trainer.model_io.record import Form
from trainer.model_io.standard_models import StandardModel
from trainer.model_io.standard_parts import own_tensors
from trainer.model_io.tiled_processor import TOKENS, tiled_processor_files


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderForm:
    """tensors: by the names that the form has. files: name -> content, as JSON values."""

    form: Form
    tensors: Iterator[tuple[str, torch.Tensor]]
    files: Mapping[str, Mapping[str, Any]]
    tokenizer: Mapping[str, Any]
    """Keys to add to tokenizer_config.json"""


def standard_form(model: VisionChatModel, build: Build, standard: StandardModel, *, dtype: torch.dtype) -> FolderForm:
    """Of a model that `standard.convert` returned."""
    geometry = build.manifest.config.image
    if is_tiled(geometry):
        processor = tiled_processor_files(geometry, model.encoder, model.image_tokens)
    else:
        is_llava = standard.form == "llava"
        expansion = llava_expansion(model) if is_llava else plain_expansion(geometry, model.image_tokens)
        processor = {
            PREPROCESSOR: preprocessor_config(geometry, model.encoder),
            PROCESSOR: processor_config(expansion),
        }
    return FolderForm(
        form=standard.form,
        tensors=standard.tensors(model),
        files={"config.json": standard.config(model, dtype=_name(dtype)), **processor},
        tokenizer=TOKENS if is_tiled(geometry) else {},
    )


def own_form(
    model: VisionChatModel,
    build: Build,
    *,
    parts: Mapping[str, Any],
    extensions: Mapping[str, Any],
    refusals: Sequence[str],
    dtype: torch.dtype,
) -> FolderForm:
    """parts: the architecture. extensions, refusals: as own_config takes them."""
    geometry = build.manifest.config.image
    expansion = plain_expansion(geometry, model.image_tokens)
    hf_config = own_config(
        parts=parts,
        extensions=extensions,
        refusals=refusals,
        dtype=_name(dtype),
        image_id=model.image_id,
        image_tokens=model.image_tokens,
        num_embeddings=build.manifest.tokenizer.num_embeddings,
    )
    return FolderForm(
        form="dsvl",
        tensors=own_tensors(model),
        files={
            "config.json": hf_config,
            PREPROCESSOR: own_preprocessor_config(geometry, model.encoder),
            PROCESSOR: processor_config(expansion, *[PROCESSOR_CLASS] * is_tiled(geometry)),
        },
        tokenizer={},
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
