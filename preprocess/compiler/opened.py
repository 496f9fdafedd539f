"""The records and image stores of a dataset, opened once per worker process.

Rule: a spool that was written again under the same name is opened again; what is finished in a cache never changes, but
`--check-inputs` may throw it away.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from preprocess.compiler.spool import TABLE, Spool
from preprocess.images.index_cache import listing_file
from preprocess.images.listings import is_listed
from preprocess.images.stores import StoreList, open_stores


def open_dataset(spool: Path, stores: tuple[Path, ...], cache: Path) -> tuple[Spool, StoreList]:
    """Raises DataError for an archive that changed after it was indexed."""
    return _open(spool, stores, cache, written(spool, stores, cache))


def written(spool: Path, stores: tuple[Path, ...], cache: Path) -> tuple[tuple[int, int], ...]:
    """What changes when the spool, or the listing of a store, is written again."""
    listings = (listing_file(path, cache) for path in stores if is_listed(path))
    files = (spool / TABLE).stat(), *(file.stat() for file in listings)
    return tuple((status.st_ino, status.st_mtime_ns) for status in files)


@lru_cache(maxsize=4)
def _open(
    spool: Path, stores: tuple[Path, ...], cache: Path, when: tuple[tuple[int, int], ...]
) -> tuple[Spool, StoreList]:
    return Spool(spool), open_stores(stores, cache)
