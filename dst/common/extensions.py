"""Objects of other packages that a configuration names: `module:NAME`, or the name of an entry point.

Rules
- A built-in name is found in its table, and nothing else is looked at. So no distribution can replace it.
- Looking for a name reads the metadata of installed distributions and imports nothing. `load` imports the one module.
- The caller decides whether a name may be loaded: a file that the user wrote may name any object, a folder that they
  open may not (trainer.config.extensions).

    point = ExtensionPoint(group="dsvl.adapters", what="adapter", built_in=ADAPTERS.keys(), attribute="ADAPTER")
    adapter = load(point, "my_package.photos:ADAPTER", "datasets.0.adapter")
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, TypeVar

from dst.common.entry_points import EntryPoint, read_entry_points
from dst.common.source_origin import owner, source_digest
from dst.common.suggest import nearest
from dst.errors import ConfigError, DsvlError

T = TypeVar("T")

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_REFERENCE = re.compile(rf"(?P<module>{_DOTTED}):(?P<attribute>{_DOTTED})")
_EXTRAS = re.compile(r"\s*\[.*\]\s*\Z")
"""What an entry point may have after its object; long obsolete, and still allowed"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionPoint:
    """A kind of object that others may add."""

    group: str
    """The group of its entry points"""
    what: str
    """What users call such an object"""
    built_in: Collection[str]
    """Names of dsvl's own"""
    attribute: str
    """The name that examples give such an object"""

    @property
    def one(self) -> str:
        """`what` with its article."""
        return f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionOrigin:
    """Where the code of an extension came from; builds and models record it."""

    name: str
    """As the configuration spells it"""
    distribution: str | None
    """The installed distribution that the module belongs to; None if it belongs to none, as with PYTHONPATH"""
    version: str | None
    """Of the distribution"""
    sha256: str
    """Digest of the source files, see dst.common.source_origin"""

    @property
    def release(self) -> str:
        """Distribution and version, for people."""
        return f"{self.distribution} {self.version}" if self.distribution else "code of no distribution"

    @property
    def code(self) -> str:
        """Distribution, version and the beginning of the digest, for people."""
        return f"{self.release} (sha256 {self.sha256[:12]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledNames:
    """All entry points of a group. Each line of `unreadable` and `shadowed` is a note to the user."""

    names: Mapping[str, tuple[EntryPoint, ...]]
    """Name -> its entry points, one for each distribution that has it; without those of built-in names"""
    unreadable: tuple[str, ...]
    """A line for each distribution whose entry points cannot be read"""
    shadowed: tuple[str, ...]
    """A line for each entry point with a built-in name"""

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.unreadable, *self.shadowed)


def installed_names(point: ExtensionPoint) -> InstalledNames:
    """The extensions that installed distributions declare. Imports none of them."""
    entries, unreadable = read_entry_points(point.group)
    names: dict[str, tuple[EntryPoint, ...]] = {}
    shadowed = []
    for entry in entries:
        if entry.name in point.built_in:
            shadowed.append(
                f"{entry.release} has an entry point {entry.name} in {point.group}, but {entry.name} is a built-in "
                f"{point.what}, which nothing replaces; expected another name in its pyproject.toml"
            )
        else:
            names[entry.name] = (*names.get(entry.name, ()), entry)
    return InstalledNames(names=dict(sorted(names.items())), unreadable=unreadable, shadowed=tuple(shadowed))


def name_problems(point: ExtensionPoint, name: str, where: str) -> list[str]:
    """Why a name cannot be that of a built-in object or of an extension; nothing is imported.

    where: the dotted path of the name in its file, which the problem begins with.
    """
    if name in point.built_in or (":" in name and _REFERENCE.fullmatch(name)):
        return []
    if ":" in name or not name.strip():
        return [f"{where}: got {name!r}; expected the name of {point.one}, or {_spelling(point)}"]
    installed = installed_names(point)
    entries = installed.names.get(name, ())
    if not entries:
        hint = nearest(name, [*point.built_in, *installed.names])
        unread = "".join(f"; {line}" for line in installed.unreadable)  # it may be there
        return [f"{where}: unknown {point.what} {name!r}; {_expected(point)}{unread}{hint}"]
    if len(entries) > 1:
        both = " and ".join(f"{entry.release} ({entry.value})" for entry in entries)
        return [
            f"{where}: {name!r} is {point.one} of {both}; uninstall one of them, or name the object itself, as "
            f"{entries[0].value}"
        ]
    return []


def load(point: ExtensionPoint, name: str, where: str) -> Any:
    """The object with this name, which is not a built-in one. Imports its module, and so runs its code.

    Raises ConfigError, with `where` in front, if there is none or its module cannot be imported.
    """
    target = _target(point, name, where)
    value: Any = _imported(target, where)
    for part in target.attribute.split("."):
        if not hasattr(value, part):
            public = [known for known in vars(value) if not known.startswith("_")] if hasattr(value, "__dict__") else []
            hint = nearest(part, public)
            raise ConfigError([f"{where}: {target}: {target.module} has no {target.attribute}{hint}"])
        value = getattr(value, part)
    return value


def load_callable(point: ExtensionPoint, name: str, where: str, expected: str) -> Any:
    """As `load`, for an object to call. expected: what it should be, for the ConfigError if it cannot be called."""
    value = load(point, name, where)
    if not callable(value):
        raise ConfigError([f"{where}: {name}: {wrong_object(value, expected)}"])
    return value


def origin(point: ExtensionPoint, name: str, where: str) -> ExtensionOrigin:
    """Where the code of an extension came from. Raises as `load` does."""
    target = _target(point, name, where)
    module = _imported(target, where)
    if not getattr(module, "__file__", None):
        raise ConfigError(
            [f"{where}: {target}: {target.module} has no file, so its code cannot be recorded; expected a .py file"]
        )
    distribution = target.distribution or owner(module)
    try:
        sha256 = source_digest(module)
    except OSError as error:
        raise ConfigError(
            [f"{where}: {target}: its source cannot be read ({error.filename}: {error.strerror}); expected .py files"]
        ) from None
    return ExtensionOrigin(
        name=name,
        distribution=distribution.metadata["Name"] if distribution else None,
        version=distribution.version if distribution else None,
        sha256=sha256,
    )


def failure(error: BaseException) -> str:
    """An exception of somebody else's code on one line, with file and line."""
    text = " ".join(str(error).split())[:600]
    if isinstance(error, SyntaxError) and error.filename:
        text, file, line = error.msg, error.filename, error.lineno
    else:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")
        ]
        if not frames:
            return f"{type(error).__name__}: {text}"
        file, line = frames[-1].filename, frames[-1].lineno
    return f"{type(error).__name__}: {text} ({file}, line {line})"


def call(function: Callable[..., T], what: str, *arguments: object) -> T:
    """Call a function of an extension. Raises ConfigError, with `what` in front, whatever the function raises."""
    try:
        return function(*arguments)
    except DsvlError:
        raise
    except Exception as error:  # the function is somebody else's
        raise ConfigError([f"{what}: {failure(error)}"]) from error


def wrong_object(value: object, expected: str) -> str:
    """What was got and what was expected, for an object that is not what it should be."""
    got = f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"
    return f"got {got}; expected {expected}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The object that a name stands for."""

    name: str
    module: str
    attribute: str
    distribution: metadata.Distribution | None = None

    def __str__(self) -> str:
        reference = f"{self.module}:{self.attribute}"
        return reference if self.name == reference else f"{self.name} ({reference})"


def _target(point: ExtensionPoint, name: str, where: str) -> _Target:
    if problems := name_problems(point, name, where):
        raise ConfigError(problems)
    if match := _REFERENCE.fullmatch(name):
        return _Target(name=name, module=match["module"], attribute=match["attribute"])
    (entry,) = installed_names(point).names[name]
    match = _REFERENCE.fullmatch(_EXTRAS.sub("", entry.value))
    if match is None:
        raise ConfigError(
            [
                f"{where}: {name} of {entry.release} is {entry.value!r}; expected its pyproject.toml to have "
                f"{_spelling(point)}"
            ]
        )
    return _Target(name=name, module=match["module"], attribute=match["attribute"], distribution=entry.distribution)


def _imported(target: _Target, where: str) -> ModuleType:
    try:
        return importlib.import_module(target.module)
    except (Exception, SystemExit) as error:  # the module is somebody else's: whatever it raises is one line
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{target.module}.".startswith(f"{missing}."):
            raise ConfigError(
                [
                    f"{where}: {target}: there is no module {missing}; install the package that has it, or add the "
                    "folder that holds it to PYTHONPATH"
                ]
            ) from None
        raise ConfigError([f"{where}: {target}: importing {target.module} failed: {failure(error)}"]) from None


def _spelling(point: ExtensionPoint) -> str:
    return f"an object of your own as my_package.my_module:{point.attribute}"


def _expected(point: ExtensionPoint) -> str:
    names = sorted(point.built_in)
    known = ", ".join(names) if len(names) < 8 else f"one that dsvl-prep {point.what}s lists"
    return f"expected {known}, an entry point of {point.group}, or {_spelling(point)}"
