"""Whether the installed packages are versions that this release was tested with.

The rule: a range is written once, in pyproject.toml, and is read from dsvl's installed metadata. A version outside of
it is one warning line; a version that is known to break something is an error before work starts. Extras that a command
does not use are not looked at, nor are packages that are not installed: what needs them says so itself.

    problems = check_installed(("train",))     # for a command that needs dsvl[train]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from dst.errors import ConfigError

PROJECT = "dsvl"
CHECKED = "DSVL_VERSIONS_CHECKED"
"""Set in the environment once a command has checked, so that the processes that it starts do not repeat it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Versions that were seen to fail, or to give other results."""

    package: str
    versions: str
    """A version specifier (PEP 440)"""
    reason: str


BROKEN = (
    Broken(
        package="deepspeed",
        versions="<=0.18.4",
        reason="two ranks train with other losses than one (0.18.0), and bf16 at stage 1 cannot be saved (0.18.4)",
    ),
    Broken(
        package="open_clip_torch",
        versions="<3",
        reason="it cannot find a model in a folder of one's own (parse_model_name)",
    ),
    Broken(package="peft", versions="<0.18", reason="it imports HybridCache, which transformers 5 does not have"),
    Broken(
        package="transformers",
        versions="<5",
        reason="it loads exported folders in another precision, and its generate() accepts a wrong is_image",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What is to be said about the installed packages, a line each."""

    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def report_installed(extras: Sequence[str], others: Callable[[], Sequence[str]], warn: Callable[[str], None]) -> None:
    """Warn of untested versions and of what `others` returns, once for a command and all processes that it starts.

    Raises ConfigError if there are versions that are known to break, before `others` is called.
    """
    if os.environ.get(CHECKED):
        return
    os.environ[CHECKED] = "1"
    problems = check_installed(extras)
    if problems.errors:
        raise ConfigError(list(problems.errors))
    for line in (*problems.warnings, *others()):
        warn(line)


def check_installed(
    extras: Sequence[str],
    *,
    requirements: Sequence[str] | None = None,
    version_of: Callable[[str], str | None] | None = None,
) -> Findings:
    """Compare what is installed with the ranges of dsvl and of these extras.

    requirements: as in the metadata's Requires-Dist; default: those of the installed dsvl, none where it runs from a
    folder that was never installed. version_of: the installed version of a package, None if it is not installed.
    """
    version_of = version_of or _installed_version
    warnings, errors = [], []
    for name, tested in _ranges(_own_requirements() if requirements is None else requirements, extras):
        installed = version_of(name)
        if installed is None:
            continue
        broken = [entry for entry in BROKEN if entry.package == name and _admits(entry.versions, installed)]
        if broken:
            errors.append(
                f"{name} {installed} does not work here: {broken[0].reason}; expected {tested}: "
                f"pip install '{name}{tested}'"
            )
        elif not _admits(tested, installed):
            warnings.append(
                f"{name} {installed} is installed, but dsvl was tested with {tested}; if something fails, "
                f"pip install '{name}{tested}'"
            )
    return Findings(warnings=tuple(warnings), errors=tuple(errors))


def _own_requirements() -> Sequence[str]:
    try:
        return metadata.requires(PROJECT) or ()
    except metadata.PackageNotFoundError:
        return ()


def _ranges(requirements: Sequence[str], extras: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, specifier) of each requirement that applies here, in order, each once."""
    from packaging.requirements import Requirement

    seen = set()
    for requirement in map(Requirement, requirements):
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        )
        specifier = ",".join(sorted(map(str, requirement.specifier), reverse=True))
        if applies and specifier and requirement.name not in seen:
            seen.add(requirement.name)
            yield requirement.name, specifier


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _admits(specifier: str, version: str) -> bool:
    """A local label (+cpu) and a pre-release count as the release they belong to."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(specifier).contains(Version(version).base_version, prereleases=True)
    except InvalidVersion:
        return False
