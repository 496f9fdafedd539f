"""What reading a damaged Parquet or Arrow file raises, as one line that names the file.

Rule: pyarrow raises many kinds of errors for damage, some with several lines of text and none with the file's name. An
OSError of the system, such as of a lost disk or a network, has a number: it is not damage, and passes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocess.errors import DataError

_MOST_TEXT = 300


@contextmanager
def damage_named(path: Path, kind: str) -> Iterator[None]:
    """Raises DataError for what pyarrow cannot read. kind: what the file is read as, such as "Parquet"."""
    import pyarrow

    try:
        yield
    # Names of columns that are not UTF-8 are a UnicodeDecodeError
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = " ".join(str(error).split())[:_MOST_TEXT].rstrip(".")
        raise DataError(
            f"{path}: cannot be read as {kind} ({text}): it is damaged or cut off; download or write it again"
        ) from None
