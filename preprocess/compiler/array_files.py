"""Arrays in the cache, one for each finished task: written whole, and read back only in the form that is expected."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.files import replace_file


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    replace_file(path, buffer.getvalue())


def read_array(path: Path, dtype: np.dtype[Any], length: int | None = None) -> npt.NDArray[Any] | None:
    """The array [length], or of any length; None if there is none, or another."""
    try:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_expected = array.dtype == dtype and array.ndim == 1 and (length is None or len(array) == length)
    return array if is_expected else None
