"""Exports that are not LLaVA folders, and the models that the auto classes of transformers make of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shards import Build
from tests.support import exports
from trainer.export.export import export_model
from trainer.model.vision_chat import VisionChatModel

MMCA: dict[str, Any] = {"attention": "mmca"}
Written = Callable[..., tuple[VisionChatModel, Path]]


def written(build: Build, tmp_path: Path) -> Written:
    """A fixture: exports a model with these parts; returns it and the folder."""

    def write(**model: Any) -> tuple[VisionChatModel, Path]:
        config = exports.config_of(build, learning_rates=exports.ALL, **model)
        made = exports.make_model(config, build)
        random = torch.Generator().manual_seed(1)
        decoder: Any = made.decoder
        with torch.no_grad():
            for parameter in decoder.parameters():  # so that answers are not one token again and again
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.2)
        done = export_model(made, config, build, tmp_path / "out", step=1)
        assert done.form == "dsvl"
        return made, tmp_path / "out"

    return write


def opened(folder: Path, **options: Any) -> Any:
    """The folder as AutoModelForImageTextToText opens it, which must miss nothing and find nothing unknown."""
    transformers: Any = importlib.import_module("transformers")
    model, loading = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, **options
    )
    assert not {name: problem for name, problem in loading.items() if problem}
    return model
