"""Virtual environments that hold what one `pip install 'dsvl[...]'` brings, and nothing else. Nothing is downloaded.

The distributions are those that pip would choose: dsvl's requirements as pyproject.toml lists them now, and theirs as
their metadata lists them, with markers and extras. Their files are links to those of the running environment, so they
have its versions. dsvl itself is a copy of what setuptools packs. pip and setuptools are there only if a distribution
requires them.

    venv = CleanVenv.make(folder, ("train",))
    venv.run("dsvl-train", "config", cwd=folder)
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sysconfig
import tomllib
import venv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S

DSVL = "dsvl"

_INHERITED = ("CUDA_VISIBLE_DEVICES", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
"""Variables that programs get from here; all others could lead out of the environment"""

# What pip writes into bin/. The guard is needed: the worker processes of a build import the script.
_SCRIPT = """\
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""


class NotInstalledError(Exception):
    """The running environment lacks a distribution that the install would bring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanVenv:
    """An environment, and the canonical names of all distributions in it except dsvl."""

    folder: Path
    distributions: frozenset[str]

    @classmethod
    def make(cls, folder: Path, extras: Iterable[str] = ()) -> CleanVenv:
        """Raises NotInstalledError."""
        made = cls(folder=folder, distributions=closure(direct_requirements(extras)))
        venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
        _link_distributions(made.site_packages, made.distributions)
        _install_dsvl(made)
        return made

    @property
    def site_packages(self) -> Path:
        base = {"base": str(self.folder), "platbase": str(self.folder)}
        return Path(sysconfig.get_path("purelib", "venv", vars=base))

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def environment(self) -> dict[str, str]:
        """The variables of its programs."""
        own = {"PATH": f"{self.bin}{os.pathsep}{os.defpath}", "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        return {**{name: os.environ[name] for name in _INHERITED if name in os.environ}, **own}

    def run(
        self,
        program: str,
        *arguments: str | Path,
        cwd: Path,
        stdin: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run python, dsvl-prep or dsvl-train of this environment, with these environment variables on top."""
        script = [] if program == "python" else [self.bin / program]
        return subprocess.run(
            list(map(str, [self.bin / "python", *script, *arguments])),
            cwd=cwd,
            env={**self.environment(), **(variables or {})},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )


def direct_requirements(extras: Iterable[str] = ()) -> list[Requirement]:
    """What pyproject.toml lists for dsvl and for these extras, as far as it applies to this machine."""
    project = _pyproject()["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    needs = [Requirement(line) for lines in lists for line in lines]
    return [need for need in needs if need.marker is None or need.marker.evaluate()]


def packages() -> list[str]:
    """What setuptools packs, with dotted names."""
    patterns = _pyproject()["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = (path.parent for pattern in patterns for path in ROOT.glob(f"{pattern}/**/__init__.py"))
    return sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)


def closure(requirements: Iterable[Requirement]) -> frozenset[str]:
    """Canonical names of all distributions that pip would install for these. Raises NotInstalledError."""
    todo = list(requirements)
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in _installed():
            raise NotInstalledError(f"{name} is not installed here; pip install '{requirement}'")
        for need in map(Requirement, _installed()[name].requires or ()):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append(need)
    return frozenset(name for name, _ in seen)


@cache
def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def _installed() -> dict[str, metadata.Distribution]:
    """By canonical name; without dsvl, whose metadata may be older than pyproject.toml."""
    actual: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        actual.setdefault(
            canonicalize_name(distribution.name), distribution
        )  # the first on sys.path is the one that Python imports
    actual.pop(DSVL, None)
    return actual


# Links to the distributions of the running environment


def _link_distributions(site_packages: Path, names: frozenset[str]) -> None:
    """Folders that only these distributions write to become one link; in shared ones each file becomes one."""
    shared = frozenset[str]().union(*(_folders(name) for name in _installed().keys() - names))
    for name in sorted(names):
        for path in {_outermost(path, shared) for path in _files(name)}:
            link = site_packages / path
            if not link.is_symlink():  # several of these distributions may write to one folder
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(str(_installed()[name].locate_file(path)))


def _outermost(path: str, shared: frozenset[str]) -> str:
    """The outermost folder of a file that is not shared, or the file itself."""
    return next((folder for folder in _folders_of(path) if folder not in shared), path)


def _folders_of(path: str) -> Iterator[str]:
    """The outermost folder first."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


@cache
def _folders(name: str) -> frozenset[str]:
    return frozenset(folder for path in _files(name) for folder in _folders_of(path))


@cache
def _files(name: str) -> tuple[str, ...]:
    """What an installed distribution wrote below site-packages, as its RECORD lists it."""
    record = _installed()[name].read_text("RECORD")
    assert record is not None, f"{name} has no RECORD, so its files are not known"
    paths = (row[0] for row in csv.reader(record.splitlines()))
    return tuple(path for path in paths if not path.startswith(("../", "/")))  # programs and manual pages are elsewhere


# dsvl, as setuptools packs it


def _install_dsvl(made: CleanVenv) -> None:
    project = _pyproject()["project"]
    for path in packed_files():
        target = made.site_packages / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    info = made.site_packages / f"{DSVL}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("\n".join(_metadata()) + "\n", encoding="utf-8")
    for program, entry in project["scripts"].items():
        module, _, function = entry.partition(":")
        (made.bin / program).write_text(_SCRIPT.format(module=module, function=function))


def _metadata() -> Iterator[str]:
    """The lines that programs ask for: `--version` reads one, and what checks installed versions reads the ranges."""
    project = _pyproject()["project"]
    yield from ("Metadata-Version: 2.1", f"Name: {DSVL}", f"Version: {project['version']}")
    yield from (f"Requires-Dist: {line}" for line in project["dependencies"])
    for extra, lines in project["optional-dependencies"].items():
        yield f"Provides-Extra: {extra}"
        for need in map(Requirement, lines):
            condition = f'extra == "{extra}"'
            need.marker = Marker(f"({need.marker}) and {condition}" if need.marker else condition)
            yield f"Requires-Dist: {need}"


def packed_files() -> Iterator[Path]:
    """The modules and data files of our packages."""
    package_data = _pyproject()["tool"]["setuptools"].get("package-data", {})
    for package in packages():
        folder = ROOT / package.replace(".", "/")
        for pattern in ("*.py", *package_data.get(package, ())):
            yield from folder.glob(pattern)
