"""Folders of images in object storage: one listing says which images there are, with sizes and marks.

Rules: every build lists again, and looks again at its end, so a changed image is found without a request for each. The
listing is kept as an index, like that of an archive: the offset of an entry is its mark. Web servers list nothing.
"""

from __future__ import annotations

from pathlib import Path

from preprocess.containers.remote_path import is_remote
from preprocess.containers.remote_requests import files_below, is_web
from preprocess.errors import DataError
from preprocess.images.index import ArchiveIndexBuilder
from shards.files import partial_path, sync_folder


def is_listed(path: Path) -> bool:
    """Whether a store is a folder in object storage."""
    return is_remote(path) and not is_web(str(path)) and path.is_dir()


def list_folder(path: Path, index_file: Path) -> None:
    """Write the listing of now. Raises DataError if the folder cannot be listed."""
    index = ArchiveIndexBuilder()
    partial = partial_path(index_file)
    try:
        for part in files_below(str(path)):
            for name, entry in part.items():
                index.add(name, entry.mark, entry.size)
        index_file.parent.mkdir(parents=True, exist_ok=True)
        index.write(partial, name=index_file.name, last_wins=True)
        partial.replace(index_file)
        sync_folder(index_file.parent)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
