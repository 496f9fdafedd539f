"""The memory that keys and values of images and conversations may take, and the folder that keeps those of images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.inference.image_files import ImageFiles, fingerprint_of
from trainer.inference.open_rows import RowsPlan
from trainer.inference.state_cache import StateCache


def print_note(text: str) -> None:
    """A line for the user, on stderr."""
    sys.stderr.write(f"note: {text}\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """What is kept of images and prompts for later ones."""

    gb: float = 1.0
    """Memory, in GiB, of the device that the model is on; 0: nothing is kept"""
    folder: Path | None = None
    """A folder for keys and values of images, which outlives the program; None: only memory"""
    folder_gb: float = 10.0
    note: Callable[[str], None] = print_note
    """Called with a line for the user about each problem of that folder"""

    def open(self, plan: RowsPlan) -> tuple[StateCache, tuple[str, ...]]:
        """An empty cache for a model, and a note if it cannot have the folder. Raises TrainError for a bad folder."""
        cache = StateCache(int(self.gb * 2**30))
        if self.folder is None:
            return cache, ()
        if plan.images is None:
            return cache, (
                f"{self.folder} is not used: only images that stand apart from the text can be kept in files",
            )
        cache.files = ImageFiles(
            self.folder,
            fingerprint_of(plan.model),
            limit_bytes=int(self.folder_gb * 2**30),
            device=plan.device,
            note=self.note,
        )
        return cache, ()
