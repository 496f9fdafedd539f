"""An exported model: what dsvl.json beside its weights says, and how the folder is opened again.

The rule: dsvl.json alone says how the model is built, with what tokenizer, template and preprocessing, and from which
data; nothing in the folder is unpickled or executed. The tokenizer's files must be the build's to the byte, since ids
depend on them; README.md and the files for transformers may be edited.

    loaded = trainer.load("folder")   # loaded.model, loaded.chat_tokenizer, loaded.geometry
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.overrides import TorchFunctionMode

import dst
from dst import ChatTokenizer
from dst.errors import ConfigError
from dst.strict import build
from shards.errors import ShardError
from shards.files import file_sha256
from shards.pixels import Geometry
from trainer.errors import TrainError
from trainer.export_llava import llava_names, own_tensors
from trainer.model import VisionChatModel, build_model
from trainer.model_config import ModelConfig
from trainer.weight_files import WeightFiles

FORMAT = "dsvl-model"
VERSION = 1
"""Rises when a program of the old version would misread a new export."""

RECORD = "dsvl.json"
TEMPLATE = "chat_template.jinja"

Form = Literal["llava", "dsvl"]
"""Whose names the weights have: LLaVA's of transformers, or our own."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model to talk to. `content` is the part of the build's manifest that says what data it was made with."""

    model: VisionChatModel
    chat_tokenizer: ChatTokenizer
    geometry: Geometry
    content: Mapping[str, Any]
    manifest_hash: str
    step: int
    folder: Path


def load_model(folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Loaded:
    """Open what `dsvl-train export` wrote; `dtype`: of the weights, instead of the one they are stored in.

    The model is in evaluation mode and nothing in it learns. Raises ConfigError if there is no export, or one of a
    newer release; TrainError if files are missing, damaged or edited.
    """
    folder = Path(folder)
    record = _read_record(folder)
    try:
        config = _model_config(record["model"])
        content, manifest_hash = record["build"]["content"], str(record["build"]["hash"])
        geometry = Geometry.of(content["config"]["image"])
        stored, form, step = DTYPES[record["precision"]], record["form"], int(record["step"])
        if form not in get_args(Form):
            raise ValueError(f"form is {form!r}")
        _check_files(folder, record["files"])
        with _NoDraws():
            model = build_model(config, content, weights=False, dtype=dtype or stored)
    except (KeyError, TypeError, AttributeError, ValueError, ShardError) as error:
        raise _unusable(folder, f"{type(error).__name__}: {error}") from None
    except ConfigError as error:
        raise _unusable(folder, "; ".join(error.problems)) from None
    _fill(model, folder, form)
    return Loaded(
        model=model.to(device).eval().requires_grad_(False),
        chat_tokenizer=_chat_tokenizer(folder, content),
        geometry=geometry,
        content=content,
        manifest_hash=manifest_hash,
        step=step,
        folder=folder,
    )


def _read_record(folder: Path) -> Mapping[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            [f"{folder}: no exported model there: it has no {RECORD}; make one with dsvl-train export"]
        ) from None
    except (OSError, ValueError) as error:
        raise _unusable(folder, str(error)) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _unusable(folder, f"it is no {FORMAT} record")
    version = record.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        age, step = ("newer", "update dsvl") if newer else ("older", "export the model anew")
        raise ConfigError([f"{folder}: the export is {age}: version {version!r}, this program reads {VERSION}; {step}"])
    return record


def _model_config(tree: Any) -> ModelConfig:
    config, problems = build(ModelConfig, tree)
    if config is None:
        raise ConfigError(problems)
    return config


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Sizes of all files, and the content of the small ones: those of the tokenizer."""
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name:
            raise _unusable(folder, f"it names {name!r}, no file of the folder")
        if not path.is_file():
            raise TrainError(f"{path}: is missing; copy it again, or export the model anew")
        if (size := path.stat().st_size) != entry["size"]:
            raise TrainError(
                f"{path}: has {size} bytes, wanted {entry['size']}; it is cut off or edited: copy it again, or export "
                "the model anew"
            )
        if "sha256" in entry and file_sha256(path) != entry["sha256"]:
            raise TrainError(
                f"{path}: is not what was exported; it is damaged or edited: copy it again, or export the model anew"
            )


def _fill(model: VisionChatModel, folder: Path, form: Form) -> None:
    """Every parameter and saved buffer from the files; more in there is for others to read."""
    names = llava_names(model) if form == "llava" else {}
    weights = WeightFiles(folder)
    with torch.no_grad():
        for name, tensor in own_tensors(model):
            stored = weights.read(names.get(name, name))
            if stored.shape != tensor.shape:
                raise TrainError(
                    f"{folder}: {names.get(name, name)} is {list(stored.shape)}, wanted {list(tensor.shape)}; "
                    "export the model anew"
                )
            tensor.copy_(stored)


def _chat_tokenizer(folder: Path, content: Mapping[str, Any]) -> ChatTokenizer:
    tokenizer = dst.load_tokenizer(folder)
    source = (folder / TEMPLATE).read_text(encoding="utf-8")
    if tokenizer.fingerprint != content["tokenizer"]["fingerprint"]:
        raise _unusable(folder, "the tokenizer beside it is another one")
    return ChatTokenizer(dst.Template(str(content["config"]["template"]), source), tokenizer)


def _unusable(folder: Path, why: str) -> TrainError:
    return TrainError(f"{folder / RECORD}: cannot be used ({why}); copy it again, or export the model anew")


class _NoDraws(TorchFunctionMode):
    """New weights are zeros: all of them are read right after, and drawing takes a minute for a large model.

    torch and transformers draw with functions of these names, which take the tensor first.
    """

    _DRAWS = frozenset(
        ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._DRAWS:
            with torch.no_grad():
                return (args or (kwargs["tensor"],))[0].zero_()
        return func(*args, **(kwargs or {}))
