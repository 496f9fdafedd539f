"""Packages and installed distributions that tests write, to be found on sys.path. Module names are made up for each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.paths import ROOT

EXAMPLE = ROOT / "examples/extensions"
"""The worked example: a package with an adapter, an encoder and a projector"""

ADAPTER = """
from preprocess.adapters.base import Adapter
from preprocess.conversation import Conversation, RecordSource, Turn

def read(request):
    for path in request.annotations:
        for number, line in enumerate(path.read_text().splitlines()):
            yield Conversation(
                id=str(number),
                turns=(Turn(role="user", parts=("Go on.",)), Turn(role="assistant", parts=(line,))),
                sources=(RecordSource(file=path.name, record=str(number)),),
                groups=(),
            )

ADAPTER = Adapter(
    read=read, annotations=("*.txt",), images=(".",), layout="Lines in *.txt.", where="Here.", licence="None."
)
"""
"""The source of a module with an adapter: each line of a text file is an answer"""


def forget(*modules: str) -> None:
    """Drop modules and their submodules, so that the next import reads their files again."""
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]


def on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Path]:
    """A folder in front of sys.path; afterwards what was imported from it is forgotten."""
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


def write_module(folder: Path, name: str, source: str) -> Path:
    """A module, with its packages if the name has dots."""
    *packages, last = name.split(".")
    for package in packages:
        folder = folder / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    path = folder / f"{last}.py"
    path.write_text(source, encoding="utf-8")
    return path


def install(
    folder: Path, name: str, version: str, *, entry_points: Mapping[str, str] | str, files: Mapping[str, str]
) -> Path:
    """A distribution as pip leaves it: its files, and metadata with entry points. Returns the folder of the metadata.

    entry_points: `group/name` -> object; or the whole text of the file.
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    if not isinstance(entry_points, str):
        entry_points = "".join(
            f"[{group}]\n{key} = {value}\n"
            for (group, _, key), value in ((path.partition("/"), value) for path, value in entry_points.items())
        )
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files), encoding="utf-8")
    return info
