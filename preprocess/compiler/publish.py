"""A build that goes to a URL: where it is compiled, and how it gets there.

Rule: each task sends its shard and keeps no copy, so the local folder holds only what the next run needs to reuse what
is finished. Whether the URL can be used is checked before work starts. The next run takes a shard there for the one
that was sent if its size, and the mark that the storage gives to each version of a file, are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dst.common.progress import Progress
from dst.common.utf8_names import name_problem
from preprocess.blend.config import Blend
from preprocess.errors import ConfigError
from shards.files import replace_file
from shards.format.shard_info import ShardInfo
from shards.storage.cache import cache_home
from shards.storage.store import local_folder

if TYPE_CHECKING:
    from shards.storage.remote import RemoteStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was uploaded to a URL, and removed there."""

    location: str
    uploaded_files: int
    uploaded_bytes: int
    removed_files: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class RemoteTarget:
    """The URL of a build. folder: for the files next to the shards until they are sent, and what was last seen there.

    before: path -> bytes of the shards that are there, without those that were written by others since the last run.
    """

    def __init__(self, store: RemoteStore, folder: Path) -> None:
        """Asks the URL for its shards. Raises ShardError if it cannot be listed."""
        self.store = store
        self.folder = folder
        self._seen = folder.with_suffix(".json")
        known = _read_marks(self._seen)
        self.before = {
            path: size for path, (size, mark) in store.versions("shards").items() if known.get(path, mark) == mark
        }

    def publish(self, shards: Iterable[ShardInfo], progress: Progress) -> Published:
        """Send what is not there, and the manifest last. shards: of the build, which tasks have sent.

        Raises ShardError; what was sent stays for the next run.
        """
        from shards.upload import plan_upload, run_upload

        upload = plan_upload(self.folder, self.store)
        if upload.paths or upload.stale:
            with progress.step("uploading", upload.size_bytes) as advance:
                run_upload(upload, self.store, progress=advance)
        sent = [size for info in shards for path, size in info.sizes() if path not in self.before]
        marks = {path: mark for path, (_, mark) in self.store.versions("shards").items()}
        replace_file(self._seen, json.dumps(marks).encode())
        return Published(
            location=self.store.location,
            uploaded_files=len(sent) + len(upload.paths),
            uploaded_bytes=sum(sent) + upload.size_bytes,
            removed_files=len(upload.stale),
        )


def target(path: Path, blend: Blend, out: str | Path | None, work: Path | None) -> tuple[Path, RemoteStore | None]:
    """The folder to compile in, and the URL's store if it goes to one. `path` is the blend file.

    Raises LocationError or ShardError if a URL cannot be written, as far as that shows without writing; ConfigError for
    `work` without a URL, and for a name that is not UTF-8.
    """
    target = out or blend.out or "build"
    folder = local_folder(target)
    if folder is not None:
        if work:
            problem = "--work is where a build for a URL is compiled, and this one goes to a folder:"
            raise ConfigError([f"{work}: {problem} {folder}"])
        folder = (path.parent / folder if blend.out and not out else folder).absolute()
        if odd_name := name_problem(folder):
            raise ConfigError([odd_name])
        return folder, None
    from shards.storage.remote import RemoteStore  # fsspec is loaded only for URLs
    from shards.upload import check_target

    store = RemoteStore(str(target))
    check_target(store)
    key = hashlib.sha256(store.location.encode()).hexdigest()[:16]
    return (work or cache_home() / "builds" / key).absolute(), store


def _read_marks(path: Path) -> Mapping[str, str]:
    """path of a shard -> its mark when the last run ended; none if there was no such run."""
    try:
        marks = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(name): str(mark) for name, mark in marks.items()} if isinstance(marks, dict) else {}
