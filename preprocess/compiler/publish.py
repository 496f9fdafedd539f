"""A build that goes to a URL: where it is compiled, and how it gets there.

Rule: it is compiled in a folder of this machine like any other build; the folder stays, so that the next run reuses it.
Whether the URL can be used is checked before work starts.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dst.common.progress import Progress
from preprocess.blend.config import Blend
from preprocess.errors import ConfigError
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


def target(path: Path, blend: Blend, out: str | Path | None, work: Path | None) -> tuple[Path, RemoteStore | None]:
    """The folder to compile in, and the URL's store if it goes to one. `path` is the blend file.

    Raises LocationError or ShardError if a URL cannot be written, as far as that shows without writing; ConfigError for
    `work` without a URL.
    """
    target = out or blend.out or "build"
    folder = local_folder(target)
    if folder is not None:
        if work:
            problem = "--work is where a build for a URL is compiled, and this one goes to a folder:"
            raise ConfigError([f"{work}: {problem} {folder}"])
        return (path.parent / folder if blend.out and not out else folder).absolute(), None
    from shards.storage.remote import RemoteStore  # fsspec is loaded only for URLs
    from shards.upload import check_target

    store = RemoteStore(str(target))
    check_target(store)
    key = hashlib.sha256(store.location.encode()).hexdigest()[:16]
    return (work or cache_home() / "builds" / key).absolute(), store


def publish(folder: Path, store: RemoteStore, progress: Progress) -> Published:
    """Upload a finished build to its URL. Raises ShardError; uploaded files stay for the next run."""
    from shards.upload import plan_upload, run_upload

    upload = plan_upload(folder, store)
    if upload.paths or upload.stale:
        with progress.step("uploading", upload.size_bytes) as advance:
            run_upload(upload, store, progress=advance)
    return Published(
        location=store.location,
        uploaded_files=len(upload.paths),
        uploaded_bytes=upload.size_bytes,
        removed_files=len(upload.stale),
    )
