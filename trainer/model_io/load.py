"""Opening an exported model, as trainer.model_io.record describes it.

The rule: nothing in the folder is unpickled or executed. Code of other packages that the folder names is imported only
if the caller names it too.

    loaded = trainer.load("folder")   # loaded.model, loaded.chat_tokenizer, loaded.geometry
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import dst
from dst import ChatTokenizer
from dst.common.utf8_names import name_problem
from dst.errors import ConfigError
from shards.format.manifest import BuildFacts
from shards.images.geometry import Geometry
from trainer.config.extensions import extension_notes, require_consent
from trainer.config.model import ModelConfig
from trainer.model.build_model import build_model, check_model
from trainer.model.decoder_checks import check_decoder
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.digests import CheckedFiles
from trainer.model_io.llava_start import load_llava
from trainer.model_io.record import (
    WEIGHTS_SUFFIX,
    ExportRecord,
    checked_files,
    is_export,
    model_config,
    read_record,
    unchecked_note,
    unusable,
)
from trainer.model_io.safetensors_files import WeightFiles
from trainer.model_io.standard_models import stored_names
from trainer.model_io.standard_parts import own_tensors

TEMPLATE = "chat_template.jinja"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with its tokenizer and preprocessing, and facts about the build that it was trained on."""

    model: VisionChatModel
    chat_tokenizer: ChatTokenizer
    geometry: Geometry
    facts: BuildFacts
    step: int
    folder: Path
    notes: tuple[str, ...] = ()
    """A line for each part whose code is not the code that the model was made with, see trainer.config.extensions, and
    one if the files have no digests"""

    @property
    def max_tiles(self) -> int | None:
        """Most tiles of a conversation, as of a sample in training; None if only its length limits them."""
        return self.facts.limits.max_tiles


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_extensions: Collection[str] = (),
) -> Loaded:
    """Open what `dsvl-train export` wrote. dtype: of the weights; default: as stored.

    allow_extensions: encoders and projectors of other packages (`my_package.my_module:ENCODER`) that the folder may
    name, and that are then imported. The model is frozen and in evaluation mode. Raises ConfigError if there is no
    export, one of a newer release, or one that names other extensions; TrainError if files are missing, damaged or
    edited.
    """
    folder = Path(folder)
    if problem := name_problem(folder):  # the safetensors library would call its files damaged
        raise ConfigError([problem])
    record = read_record(folder)
    facts, recorded = record.build, record.extensions or {}
    require_consent(folder, record.model, recorded, allow_extensions)
    notes = extension_notes(record.model, recorded, f"{folder}: ") + unchecked_note(folder, record)
    files = checked_files(folder, record)
    try:
        config = model_config(record.model)
        if problems := check_model(config, facts):
            raise ConfigError(problems)
        model = _filled_model(folder, record, files, config, dtype or DTYPES[record.precision])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise unusable(folder, f"{type(error).__name__}: {error}") from None
    except ConfigError as error:
        raise unusable(folder, "; ".join(error.problems)) from None
    return Loaded(
        model=model.to(device).eval().requires_grad_(False),
        chat_tokenizer=_chat_tokenizer(folder, facts),
        geometry=facts.image,
        facts=facts,
        step=record.step,
        folder=folder,
        notes=tuple(notes),
    )


def started_model(
    config: ModelConfig, facts: BuildFacts, *, dtype: torch.dtype, lazy_decoder: bool = False
) -> VisionChatModel:
    """The model at `config.init_from`, for a run on the build with these facts.

    config: filled in by trainer.checkpoint.init_from, and checked by trainer.model.build_model.check_model.
    lazy_decoder: as build_model takes it. Raises as `load_model` and `load_llava` do.
    """
    folder = Path(str(config.init_from))
    if not is_export(folder):
        return load_llava(config, facts, dtype=dtype, lazy_decoder=lazy_decoder)
    record = read_record(folder)
    try:
        model = _filled_model(
            folder, record, checked_files(folder, record), config, dtype, facts=facts, lazy_decoder=lazy_decoder
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise unusable(folder, f"{type(error).__name__}: {error}") from None
    model.separates_samples = check_decoder(model.decoder, config.decoder, config.attention)
    return model


def _filled_model(
    folder: Path,
    record: ExportRecord,
    files: CheckedFiles,
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    facts: BuildFacts | None = None,
    lazy_decoder: bool = False,
) -> VisionChatModel:
    """facts: of another build than the one that the export was trained on.

    Raises KeyError, TypeError, ValueError or ConfigError for a damaged record, TrainError for damaged files.
    """
    files.check_ahead(name for name in record.files if name.endswith(WEIGHTS_SUFFIX))  # while the model is made
    with ZeroInitialisation():
        model = build_model(config, facts or record.build, weights=False, dtype=dtype, lazy_decoder=lazy_decoder)
    # Every parameter and persistent buffer is loaded; other tensors in the files are for other programs.
    names = stored_names(record.form, model)
    weights = WeightFiles(folder, files)
    with torch.no_grad():
        for name, tensor in own_tensors(model):
            if tensor.is_meta:
                continue
            tensor.copy_(weights.read(names.get(name, name), shape=tensor.shape))
    return model


def _chat_tokenizer(folder: Path, facts: BuildFacts) -> ChatTokenizer:
    tokenizer = dst.load_tokenizer(folder)
    source = (folder / TEMPLATE).read_text(encoding="utf-8")
    if tokenizer.fingerprint != facts.tokenizer.fingerprint:
        raise unusable(folder, "the tokenizer next to it is another one")
    return ChatTokenizer(dst.Template(facts.template, source), tokenizer)


class ZeroInitialisation(TorchFunctionMode):
    """New weights are zeros: all are loaded right after, and random initialisation of a large model takes a minute.

    torch and transformers initialise with functions of these names, whose first argument is the tensor.
    """

    _RANDOM = frozenset(
        ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._RANDOM:
            with torch.no_grad():
                return (args or (kwargs["tensor"],))[0].zero_()
        return func(*args, **(kwargs or {}))
