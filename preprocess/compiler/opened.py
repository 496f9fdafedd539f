"""The records and image stores of a dataset, opened once per worker process.

Rule: a spool that was written again under the same name is opened again; what is finished in a cache never changes, but
`--check-inputs` may throw it away.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from preprocess.compiler.spool import TABLE, Spool
from preprocess.images.stores import StoreList, open_stores


def open_dataset(spool: Path, stores: tuple[Path, ...], cache: Path) -> tuple[Spool, StoreList]:
    """Raises DataError for an archive that changed after it was indexed."""
    return _open(spool, stores, cache, written(spool))


def written(spool: Path) -> tuple[int, int]:
    """What changes when the spool is written again."""
    status = (spool / TABLE).stat()
    return status.st_ino, status.st_mtime_ns


@lru_cache(maxsize=4)
def _open(spool: Path, stores: tuple[Path, ...], cache: Path, when: tuple[int, int]) -> tuple[Spool, StoreList]:
    return Spool(spool), open_stores(stores, cache)
