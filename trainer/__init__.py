"""The training half of dsvl. It reads build folders, and imports none of the code that compiles them.

    loaded = trainer.load("exported")   # an export of `dsvl-train export`: model, chat tokenizer, image geometry

After `import trainer`, the Auto classes of transformers open exports too: see docs/export.md. Importing this package
loads no torch and no transformers; `load` does.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from dst.errors import ConfigError, DsvlError
from trainer.auto_classes.registration import register_with_transformers
from trainer.errors import GpuMemoryError, LostRankError, QueueFullError, StoppingError, TooLongError, TrainError

if TYPE_CHECKING:
    import torch

    from trainer.model_io.load import Loaded

__all__ = [
    "ConfigError",
    "DsvlError",
    "GpuMemoryError",
    "LostRankError",
    "QueueFullError",
    "StoppingError",
    "TooLongError",
    "TrainError",
    "load",
]

register_with_transformers()


def load(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_extensions: Collection[str] = (),
) -> Loaded:
    """Open an exported model, frozen and in evaluation mode; see trainer.model_io.load.load_model."""
    from trainer.model_io.load import load_model

    return load_model(folder, device=device, dtype=dtype, allow_extensions=allow_extensions)
