"""Flipped bits in every file of a build and of its cache, and manifests that were forged and sealed again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import shards
from dst.errors import DsvlError
from tests.support.junk import JUNK, places
from tests.support.manifests import edit_manifest
from tests.support.sealed_records import edit_record
from tests.support.small_blends import build
from tools.torture.outcomes import Outcomes, loss_of
from tools.torture.small_build import SmallBuild

_NUMBERS = (-1, -(2**63), 2**31, 2**53 + 1, 10**18, 1.5)
OF_MODELS = (".safetensors", ".json", ".jinja")
CACHED = ("ingest", "stores", "tasks", "tokenizer", "fingerprints", "frames")


def flips(small: SmallBuild, count: int, rng: random.Random) -> Outcomes:
    """A bit of a file of the build: `verify` or opening must find it."""
    return _flips("flips", sorted(path for path in small.whole.rglob("*") if _is_pinned(path)), count, rng, small.whole)


def flips_in(folder: Path, check: Callable[[], Sequence[str]], count: int, rng: random.Random) -> Outcomes:
    """A bit of a file of a model below a folder, as an export: `check` must name a problem or raise an error."""
    outcomes = Outcomes(f"flips in {folder.name}")
    files = sorted(path for path in folder.rglob("*") if path.suffix in OF_MODELS)  # not the card, which people edit
    for number in range(count):
        path = rng.choice(files)
        with _Flipped(path, rng.randrange(path.stat().st_size * 8)):
            outcomes.count(f"{number}, {path.name}", loss_of(lambda: None if check() else "not found"))
    return outcomes


def cache_flips(small: SmallBuild, count: int, rng: random.Random) -> Outcomes:
    """A bit of a file that a build keeps for the next one: that one gives the same bytes, or a clear error."""

    def flip(path: Path, out: Path) -> str:
        bit = rng.randrange(path.stat().st_size * 8)
        _flip(path, bit)
        return f"bit {bit}"

    return _in_caches("cache flips", flip, small, count, rng)


def cache_mix_ups(small: SmallBuild, count: int, rng: random.Random) -> Outcomes:
    """Such a file is cut, emptied, lengthened, removed, made a folder, or has the content of another of its kind."""

    def mix_up(path: Path, out: Path) -> str:
        content = path.read_bytes()
        others = [other for other in _cached(out) if other.suffix == path.suffix and other != path]
        match rng.randrange(6):
            case 0 | 1 if others:
                other = rng.choice(others)
                path.write_bytes(other.read_bytes())
                return f"the content of {other.relative_to(out)} as"
            case 2:
                path.unlink()
                return "without"
            case 3:
                path.unlink()
                path.mkdir()
                return "a folder as"
            case 4:
                path.write_bytes(content + b"\0")
                return "one byte more in"
        size = rng.randrange(len(content))
        path.write_bytes(content[:size])
        return f"the first {size} bytes"

    return _in_caches("cache mix-ups", mix_up, small, count, rng)


def forgeries(small: SmallBuild, count: int, rng: random.Random) -> Outcomes:
    """A value of the manifest is replaced and the hash made right: refused, or every sample reads as it was."""
    outcomes = Outcomes("forgeries")
    text = (small.whole / "manifest.json").read_bytes()
    for number in range(count):
        chosen: list[tuple[Any, ...]] = []

        def change(document: dict[str, Any], chosen: list[tuple[Any, ...]] = chosen) -> None:
            chosen.append(rng.choice([path for path in places(document) if path != ("hash",)]))
            _replace(document, chosen[0], rng)

        edit_manifest(small.whole, change)
        name = f"{number}, {'.'.join(map(str, chosen[0]))}"
        outcomes.count(name, loss_of(lambda: _read_all(small.whole)))
        (small.whole / "manifest.json").write_bytes(text)
    return outcomes


def forged_records(folder: Path, load: Callable[[], None], count: int, rng: random.Random) -> Outcomes:
    """A value of a record of a model is replaced and its digest made right: `load` refuses it in one line, or loads."""
    outcomes = Outcomes(f"forged records in {folder.name}")
    records = sorted(path for name in ("dsvl.json", "checkpoint.json") for path in folder.rglob(name))
    for number in range(count):
        path = rng.choice(records)
        content = path.read_bytes()
        chosen: list[tuple[Any, ...]] = []

        def change(document: dict[str, Any], chosen: list[tuple[Any, ...]] = chosen) -> None:
            chosen.append(rng.choice(list(places(document))))
            _replace(document, chosen[0], rng)

        edit_record(path, change)
        name = f"{number}, {'.'.join(map(str, chosen[0]))} of {path.name}"
        outcomes.count(name, loss_of(load))
        path.write_bytes(content)
    return outcomes


def _replace(document: dict[str, Any], place: tuple[Any, ...], rng: random.Random) -> None:
    *parents, last = place
    inner: Any = document
    for key in parents:
        inner = inner[key]
    values = _NUMBERS if isinstance(inner[last], int | float) else [each for each in JUNK if _is_json(each)]
    inner[last] = rng.choice(list(values))


def _in_caches(
    kind: str, damage: Callable[[Path, Path], str], small: SmallBuild, count: int, rng: random.Random
) -> Outcomes:
    """damage: changes a file of a copy of the build, and says how."""
    outcomes = Outcomes(kind)
    for number in range(count):
        out = small.folder / f"cache-{number}"
        shutil.copytree(small.whole, out)
        if rng.random() < 0.5:  # the shards have to be compiled again from what the cache has
            shutil.rmtree(out / ".cache/tasks")
        path = rng.choice(_cached(out))
        name = f"{number}, {damage(path, out)} of {path.relative_to(out)}"
        outcomes.count(name, loss_of(lambda out=out: _rebuilt(small, out)))  # type: ignore[misc]
        shutil.rmtree(out)
    return outcomes


def _cached(out: Path) -> list[Path]:
    files = [path for part in CACHED for path in sorted((out / ".cache" / part).rglob("*")) if path.is_file()]
    return [path for path in files if path.stat().st_size]


def _flips(kind: str, files: Sequence[Path], count: int, rng: random.Random, build_folder: Path) -> Outcomes:
    outcomes = Outcomes(kind)

    def found() -> str | None:
        return None if shards.verify(shards.open(build_folder)).problems else "not found"

    for number in range(count):
        path = rng.choice(files)
        bit = rng.randrange(path.stat().st_size * 8)
        with _Flipped(path, bit):
            outcomes.count(f"{number}, bit {bit} of {path.relative_to(build_folder)}", loss_of(found))
    return outcomes


def _is_pinned(path: Path) -> bool:
    return path.is_file() and ".cache" not in path.parts and path.stat().st_size > 0


class _Flipped:
    """A file with a flipped bit, as long as the context lasts."""

    def __init__(self, path: Path, bit: int) -> None:
        self._path, self._bit = path, bit

    def __enter__(self) -> None:
        _flip(self._path, self._bit)

    def __exit__(self, *_: object) -> None:
        _flip(self._path, self._bit)


def _flip(path: Path, bit: int) -> None:
    with path.open("rb+") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def _rebuilt(small: SmallBuild, out: Path) -> str | None:
    try:
        build(small.blend, out=out)
    except DsvlError as error:
        return f"an error of several lines: {error}" if "\n" in str(error) else None
    return small.difference(out)


def _read_all(folder: Path) -> None:
    opened = shards.open(folder)
    for split in opened.splits:
        for sample in opened[split]:
            assert sample.ids.size
    shards.verify(opened)


def _is_json(value: object) -> bool:
    return not isinstance(value, float) and "\\ud800" not in repr(value) and value != 10**30
