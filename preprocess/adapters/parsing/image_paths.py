"""One spelling for each file: the paths of images as records have them, made relative to an image store.

    ./a.jpg   x//a.jpg   x/../a.jpg   ../x/a.jpg   x\\a.jpg   /data/x/a.jpg   file:///data/x/a.jpg   file:/x/a%20b.jpg

Rule: paths are compared as text, so a result depends only on the record and on the dataset's folders, never on the
files in them. A path that begins with `..` starts at the dataset's root. A path that leads out of the image folders is
a reject, not an image.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from preprocess.conversation import Image
from preprocess.errors import RejectError

_UNUSUAL = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|\\|\A(?:[A-Za-z]|file):|://|\Adata:", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:")
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/\\]*)(?=[/\\]|\Z))?(?P<path>.*)", re.IGNORECASE | re.DOTALL)
_SHOWN_FOLDERS = 3


def plain_path(path: str, what: str) -> str:
    """The path with single slashes and no `.`; it may still be absolute, or begin with `..`. Raises RejectError.

    path: Unicode text, not an http URL. what: the name of the value, for messages.
    """
    if not _UNUSUAL.search(path):
        return path
    plain = path
    if url := _FILE_URL.fullmatch(path):
        plain = _path_of_url(path, url, what)
    elif "://" in path or path[:5].lower() == "data:":
        raise _refused(path, what, "download it first, and give its path below the image folder")
    plain = plain.replace("\\", "/")
    if _DRIVE.match(plain):
        raise _refused(path, what, "expected a path of this machine, not of a Windows drive")
    if plain.startswith("//"):
        raise _refused(path, what, "expected a path below an image folder, not of a network share")
    plain = posixpath.normpath(plain)
    if plain in (".", "/") or plain.endswith(".."):
        raise _refused(path, what, "expected the path of an image, not of a folder")
    return plain


def image_below(path: str, value: str, images: tuple[Path, ...], root: Path, what: str) -> Image:
    """The image at an absolute path, by its path below the first of the stores `images` that contains it.

    path: what `plain_path` made of the record's `value`.
    Raises RejectError for a path outside of them. With several stores the image names its store, since the file at
    this path is meant, not one with the same name in an earlier store.
    """
    for index, folder in _prefixes(images):
        if path.startswith(folder):
            return Image(name=path[len(folder) :], store=index if len(images) > 1 else None)
    folders = [folder for _, folder in _prefixes(images)]
    shown = ", ".join(folders[:_SHOWN_FOLDERS]) + (", ..." if len(folders) > _SHOWN_FOLDERS else "")
    if any(path.startswith(folder) for _, folder in _prefixes((root,))):
        stores = [os.path.relpath(store, root) for store in images]
        setting = f"set images: [{', '.join([*stores, '.'])}]" if len(stores) <= _SHOWN_FOLDERS else "add . to `images`"
        advice = f"it is below the root {root}, and not in {shown or 'an image folder'}; {setting}"
    else:
        advice = f"expected a path below {shown or 'an image folder'}; add the image's folder to the dataset's `images`"
    raise _refused(value, what, advice if value == path else f"it leads to {path[:200]!r}; {advice}")


def _path_of_url(path: str, url: re.Match[str], what: str) -> str:
    if url["host"] and url["host"].lower() != "localhost":
        raise _refused(path, what, f"it names the host {url['host'][:80]!r}; expected file:/// before an absolute path")
    try:
        plain = unquote(url["path"], errors="strict")
    except UnicodeDecodeError:
        raise _refused(path, what, "its percent codes are not UTF-8") from None
    # file:///C:/a.jpg: the first slash is the URL's, not the path's
    return plain[1:] if _DRIVE.match(plain, 1) else plain


@lru_cache(maxsize=64)
def _prefixes(stores: tuple[Path, ...]) -> tuple[tuple[int, str], ...]:
    """For each store that is a folder: its index and its path with a slash at the end, as given and without links."""
    found: dict[str, int] = {}
    for index, store in enumerate(stores):
        if store.is_dir():
            for folder in (os.path.abspath(store), os.path.realpath(store)):
                found.setdefault(os.path.join(folder, ""), index)
    return tuple((index, folder) for folder, index in found.items())


def _refused(path: str, what: str, advice: str) -> RejectError:
    return RejectError("image_path", f"{what} is {path[:200]!r}; {advice}")
