"""Find datasets below a folder: the layouts that adapters read, and one's own files of conversations.

Rule: what was found and cannot be read is reported with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.adapters.base import Layout, Request
from preprocess.adapters.datasets.chat.forms import CAPTION_FORM
from preprocess.adapters.parsing.splits import split_of_file
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.caption_folders import PROMPT, caption_folders
from preprocess.blend.folders import DEPTH, Folder, walk
from preprocess.blend.guess_names import Names
from preprocess.blend.image_search import elsewhere, find_images, other_folders
from preprocess.blend.layouts import matching
from preprocess.blend.own_files import CHAT, OwnFiles, Unread, first_conversations, names_of, own_files
from preprocess.conversation import is_url
from preprocess.errors import ConfigError, DataError

_ZIP = "a zip in which no dataset's images were found; unpack it if it holds annotation files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A dataset. annotations: files below the folder, images: folders and archives; empty: the adapter's own.

    prompt: for records without a question. names: what names in its records may stand for. notes: what a person should
    know before building it.
    """

    adapter: str
    folder: Path
    annotations: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    prompt: str = ""
    names: Names = field(default_factory=Names)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What is below a root: datasets, and files that may be data and are in none."""

    datasets: tuple[Found, ...]
    unread: tuple[Unread, ...]


def discover(root: Path) -> Discovery:
    """Everything that can be read below a root. Raises ConfigError if it is not a folder, or nothing is found."""
    if not root.is_dir():
        is_url = ":/" in str(root)
        step = "; init looks into local folders, so write the blend by hand (docs/remote-inputs.md)" if is_url else ""
        raise ConfigError([f"--root {root}: no such folder{step}"])
    folders = list(walk(root))
    datasets: list[Found] = []
    unread: list[Unread] = []
    kept: set[Path] = set()
    for adapter, layout, folder in find_layouts(folders):
        datasets.append(_dataset(adapter, layout, folder, folders))
        kept |= {path.resolve() for path in matching(folder, (*layout.annotations, *layout.images))}
    for inside in folders:
        if inside.path.resolve() in kept:
            continue
        own, others = own_files(inside.records, kept, root)
        datasets += [_own_dataset(files, _above_splits(inside.path, root), folders) for files in own]
        unread += others
    datasets += [_captions(path) for path in caption_folders(folders)]
    used = {path for dataset in datasets for path in dataset.images}
    zips = [path for inside in folders for path in inside.archives if path.suffix.lower() == ".zip"]
    unread += [Unread(path, _ZIP) for path in zips if path.resolve() not in kept]
    unread = [one for one in unread if one.path not in used]
    if not datasets:
        raise ConfigError([_nothing_found(root, unread)])
    return Discovery(datasets=tuple(datasets), unread=tuple(unread))


def find_layouts(folders: Sequence[Folder]) -> Iterator[tuple[str, Layout, Path]]:
    """(adapter, layout, folder) for every layout whose annotation files exist; the same files count once."""
    seen: set[tuple[str, Path]] = set()
    for folder in folders:
        for name, adapter in ADAPTERS.items():
            for layout in adapter.layouts if name != CHAT else ():  # chat's patterns match any JSON file
                matches = [matching(folder.path, (pattern,)) for pattern in layout.annotations]
                enough = all if adapter.joins else any
                files = {(name, path.resolve()) for found in matches for path in found}
                if enough(matches) and not files & seen:
                    seen |= files
                    yield name, layout, folder.path
                    break


def _dataset(name: str, layout: Layout, folder: Path, folders: Sequence[Folder]) -> Found:
    """A dataset in a known layout; if its images are not where the layout has them, they are searched for."""
    adapter = ADAPTERS[name]
    if matching(folder, layout.images):
        return Found(adapter=name, folder=folder)
    request = Request(
        root=folder,
        annotations=matching(folder, layout.annotations),
        images=(),
        options={key: option.default for key, option in adapter.options.items()},
    )
    try:
        conversations, _ = first_conversations(name, request)
    except (DataError, ConfigError, OSError, IndexError) as error:
        return Found(adapter=name, folder=folder, notes=(f"its annotations cannot be read: {error}",))
    images, notes = _images(names_of(conversations), folder, folders)
    return Found(adapter=name, folder=folder, images=images, notes=notes)


def _own_dataset(own: OwnFiles, folder: Path, folders: Sequence[Folder]) -> Found:
    split = split_of_file(own.files[0].relative_to(folder).as_posix())
    images, notes = _images(own.images, own.files[0].parent, folders, split)
    images = tuple(dict.fromkeys((*images, *own.folders)))
    defaults = {path.resolve() for path in matching(folder, ADAPTERS[CHAT].images)}
    if all(path.resolve() in defaults for path in images):
        images = ()
    elif own.num_embedded:
        images = (*images, *own.files)
    if not own.images and not own.folders:
        notes = ("images are in the files themselves",) if own.num_embedded else ("no images in its first records",)
    return Found(
        adapter=CHAT,
        folder=folder,
        annotations=own.files,
        images=images,
        prompt=PROMPT if own.forms == (CAPTION_FORM,) else "",
        names=own.names,
        notes=(*_reading(own), *notes, *own.names.questions),
    )


def _captions(folder: Path) -> Found:
    notes = ("images with a .txt of the same name next to each; change the prompt to what you will ask",)
    return Found(adapter=CHAT, folder=folder, annotations=(folder,), prompt=PROMPT, notes=notes)


def _above_splits(folder: Path, root: Path) -> Path:
    """The folder, or the first above it that is not named after a split: below the root, such a name is a split."""
    while folder != root and split_of_file(f"{folder.name}/x"):
        folder = folder.parent
    return folder


def _reading(own: OwnFiles) -> Iterator[str]:
    """How the first records were read."""
    names = own.names
    yield f"form: {', '.join(own.forms)}"
    guesses = ", ".join(f"{theirs} is {ours}" for theirs, ours in (*names.fields.items(), *names.roles.items()))
    if guesses:
        yield f"guessed from its first {own.num_records} records, please check: {guesses}"
    if names.unknown_roles:
        yield f"not guessed: who of {', '.join(names.unknown_roles)} is user and who is assistant; fill in `roles`"
    if own.reject is not None:
        yield (
            f"{own.num_records - own.num_read} of its first {own.num_records} records are rejects: "
            f"{own.reject.reason}: {own.reject.detail}"
        )


def _images(
    names: Sequence[str], near: Path, folders: Sequence[Folder], split: str = ""
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Where the images are, and what is to say about it."""
    plain = [name for name in names if not is_url(name)]
    stores, missing = find_images(plain, near, folders, split)
    if any(map(is_url, names)):
        return tuple(stores), ("its records name images by URL: run dsvl-prep fetch before the build",)
    if not missing:
        others = other_folders(plain[0], near, folders, stores) if plain else []
        note = f"{others[0]} has an image {plain[0]} too: is `images` the right folder?" if others else ""
        return tuple(stores), (note,) if note else ()
    other = elsewhere(missing[0], near, folders)
    hint = f"; {other} is there: is the path in the records another one?" if other else ""
    note = f"images not found: its records name {missing[0]}, which is in no folder or archive searched{hint}"
    return tuple(stores), (note,)


def _nothing_found(root: Path, unread: Sequence[Unread]) -> str:
    lines = [f"{one.path}: {one.reason}" for one in unread[:3]]
    seen = f"; found, but cannot be read: {'; '.join(lines)}" if lines else ""
    return (
        f"--root {root}: no dataset there or {DEPTH} folders below{seen}; `dsvl-prep adapters` lists what can be read"
    )
