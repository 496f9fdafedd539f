"""Requests for inputs behind URLs: what is known of a file, what a folder holds, and the bytes of a file.

Rules: connections, tries and waits are those of shards.storage.remote. Whatever goes wrong is an OSError whose filename
is the URL, as for a local file: FileNotFoundError for what is not there, else one whose text says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import xxhash

from shards.errors import NetworkError

if TYPE_CHECKING:
    from shards.storage.remote import RemoteStore

WEB = ("http", "https")
"""Protocols without listings"""

_MARKS = ("ETag", "etag", "md5Hash", "generation", "mtime", "modified", "created", "LastModified", "Last-Modified")
"""Where the file systems of fsspec have what changes when a file is written again, the best first"""

_FILE_NAME = re.compile(r".*[^/.]\.[A-Za-z][A-Za-z0-9]{1,7}", re.DOTALL)
_GONE = (404, 410)
_LISTINGS = 8
"""Folders that are listed at the same time"""

T = TypeVar("T")


class RemoteEntry(NamedTuple):
    """A file or a folder. size: in bytes. mark: 62 bits that change when the file is written again; 0 if unknown."""

    is_file: bool
    size: int = 0
    mark: int = 0


def entry_of(url: str) -> RemoteEntry:
    """What is at a URL; one request. On a web server, a name without an extension is a folder, without a request."""
    if is_web(url) and not _FILE_NAME.fullmatch(url.partition("?")[0]):
        return RemoteEntry(is_file=False)
    return file_entry(url)


def file_entry(url: str) -> RemoteEntry:
    """The same for what is a file if it is on a web server."""
    return _entry(_ask(url, _info), url)


def entries_in(url: str) -> dict[str, RemoteEntry]:
    """Name -> entry of what is directly in a folder, sorted; nothing if it is not there. A web server lists nothing."""
    if is_web(url):
        return {}
    with contextlib.suppress(FileNotFoundError):
        infos = _ask(url, _ls)
        return {name: _entry(info, url) for name, info in sorted(infos.items()) if "/" not in name}
    return {}


def files_below(url: str) -> Iterator[dict[str, RemoteEntry]]:
    """Path below a folder -> entry of all files, in parts: those directly in it, then those of each folder in it.

    A request brings about a thousand of them, and several folders are listed at the same time.
    """
    inside = entries_in(url)
    yield {name: entry for name, entry in inside.items() if entry.is_file}
    folders = [name for name, entry in inside.items() if not entry.is_file]
    with ThreadPoolExecutor(_LISTINGS, "listing") as pool:
        for start in range(0, len(folders), _LISTINGS):  # a few at a time, since each is in memory until it is taken
            yield from pool.map(partial(_below, url), folders[start : start + _LISTINGS])


def read_ranges(url: str, cuts: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes from each start to before each end, requested at the same time. Raises OSError if some are missing."""
    pieces = _ask(url, partial(_cat, cuts))
    for piece, (start, end) in zip(pieces, cuts, strict=True):
        if len(piece) > end - start:
            raise OSError(
                errno.EIO,
                "the server ignores range requests and sends whole files; use a server that knows them, or download "
                "the file",
                url,
            )
    return pieces


def read_whole(url: str, size: int | None) -> bytes:
    """A small file, in one request. Raises OSError if it does not have `size` bytes any more; None: of any size."""
    end = None if size is None else size + 1  # one more byte shows a file that has grown
    data = _ask(url, partial(_whole, end))
    if size is not None and len(data) != size:
        raise changed(url)
    return data


def read_beginning(url: str, at_most: int) -> bytes:
    """The first bytes of a file, or all of a smaller one, in one request."""
    return _ask(url, partial(_whole, at_most))[:at_most]


def changed(url: str) -> OSError:
    """The error for a file that is not what a listing said."""
    return OSError(errno.EIO, "was written again since the build looked at it; run the same command again", url)


def is_web(url: str) -> bool:
    return url.partition("://")[0] in WEB


def check_url(url: str) -> None:
    """Raises LocationError for a protocol that cannot be read here, and ValueError for what is not a file's URL."""
    if "::" in url:
        raise ValueError(f"{url}: chained URLs are not read; name the archive itself, such as s3://bucket/images.zip")
    if not url.partition("://")[2].strip("/"):
        raise ValueError(f"{url}: names no bucket or host; expected such as s3://bucket/folder")
    _store(_split(url)[0])


def _split(url: str) -> tuple[str, str]:
    """The bucket or host as a URL, and the path below it."""
    protocol, _, rest = url.partition("://")
    first, _, key = rest.partition("/")
    return f"{protocol}://{first}", key


@lru_cache(maxsize=64)
def _store(location: str) -> RemoteStore:
    """One connection for each bucket in each process."""
    from shards.storage.remote import RemoteStore  # fsspec is loaded only for URLs

    # It logs each failed request with its traceback; what came of it is in the error.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return RemoteStore(location)


def _ask(url: str, action: Callable[[str, Any, str], T]) -> T:
    location, key = _split(url)
    try:
        return _store(location).ask(partial(action, key))
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file or folder there", url) from None
    except NetworkError as error:
        raise OSError(errno.EIO, str(error), url) from None


def _at(root: str, key: str) -> str:
    return f"{root}/{key}" if key else root


def _info(key: str, files: Any, root: str) -> dict[str, Any]:
    files.invalidate_cache()  # others may have written there since it was listed
    try:
        info: dict[str, Any] = files.info(_at(root, key))
    except FileNotFoundError as error:
        # fsspec says so of every answer of a web server that is not the file, such as 403 and 503.
        cause = error.__cause__
        if isinstance(cause, Exception) and is_web(root) and getattr(cause, "status", None) not in _GONE:
            raise cause from None
        raise
    return info


def _ls(key: str, files: Any, root: str) -> dict[str, dict[str, Any]]:
    files.invalidate_cache()
    return _named_below(_at(root, key), {info["name"]: info for info in files.ls(_at(root, key), detail=True)})


def _find(key: str, files: Any, root: str) -> dict[str, dict[str, Any]]:
    files.invalidate_cache()
    found = files.find(_at(root, key), detail=True)
    files.invalidate_cache()  # it keeps as much again
    return _named_below(_at(root, key), found if isinstance(found, dict) else {})  # some give a list if there is none


def _named_below(folder: str, infos: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the names below the folder. The folder itself is left out: consoles of clouds make empty objects for them."""
    start = f"{folder.strip('/')}/"
    names = ((name.strip("/"), info) for name, info in infos.items())
    return {name[len(start) :]: info for name, info in names if name.startswith(start)}


def _cat(cuts: Sequence[tuple[int, int]], key: str, files: Any, root: str) -> list[bytes]:
    starts, ends = [start for start, _ in cuts], [end for _, end in cuts]
    pieces: list[Any] = files.cat_ranges([_at(root, key)] * len(cuts), starts, ends, on_error="return")
    for piece, (start, end) in zip(pieces, cuts, strict=True):
        if isinstance(piece, BaseException):
            raise piece
        if len(piece) < end - start:
            raise OSError(f"{len(piece)} bytes came, expected {end - start} from byte {start} on")
    return pieces


def _whole(end: int | None, key: str, files: Any, root: str) -> bytes:
    data: bytes = files.cat_file(_at(root, key), start=None if end is None else 0, end=end)
    return data


def _below(url: str, folder: str) -> dict[str, RemoteEntry]:
    place = f"{url}/{folder}"
    with contextlib.suppress(FileNotFoundError):
        return {f"{folder}/{name}": _entry(info, place) for name, info in _ask(place, _find).items()}
    return {}


def _entry(info: dict[str, Any], url: str) -> RemoteEntry:
    if info.get("type") == "directory":
        return RemoteEntry(is_file=False)
    size = info.get("size")
    if size is None:
        raise OSError(errno.EIO, "the server does not say how many bytes the file has; download it", url)
    mark = next((str(info[key]) for key in _MARKS if info.get(key)), "")
    return RemoteEntry(True, int(size), xxhash.xxh3_64_intdigest(mark.encode()) >> 2 if mark else 0)
