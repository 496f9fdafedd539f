"""Arrays in the cache, one for each finished task: written whole, and read back only in the form that is expected.

A file is an .npy file and the xxh3_128 of its name and content: a damaged one, and one that was exchanged with another,
is as none, so that its task runs again.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.files import owned_digest, replace_file

_DIGEST_BYTES = 16


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    content = buffer.getvalue()
    replace_file(path, content + owned_digest(path.name, content).digest())


def read_array(path: Path, dtype: np.dtype[Any], length: int | None = None) -> npt.NDArray[Any] | None:
    """The array [length], or of any length; None if there is none, or another, or a damaged one."""
    try:
        whole = path.read_bytes()
        content = whole[:-_DIGEST_BYTES]
        if owned_digest(path.name, content).digest() != whole[-_DIGEST_BYTES:]:
            return None
        array: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError):
        return None
    is_expected = array.dtype == dtype and array.ndim == 1 and (length is None or len(array) == length)
    return array if is_expected else None
