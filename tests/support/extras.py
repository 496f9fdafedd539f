"""What pyproject.toml lists, and what installed distributions bring."""

from __future__ import annotations

from importlib import metadata

from packaging.utils import canonicalize_name

from tests.support.clean_venvs import direct_requirements, packages

OURS = sorted({name.partition(".")[0] for name in packages()})
EXTRAS = ("train", "ray", "remote", "eval", "language", "qlora", "video", "view", "serve")


def providers() -> dict[str, set[str]]:
    """Top-level module -> the canonical names of distributions that bring it."""
    actual = metadata.packages_distributions()
    return {module: {canonicalize_name(name) for name in names} for module, names in actual.items()}


def names_of(*extras: str) -> set[str]:
    """The canonical names that pyproject.toml lists."""
    return {canonicalize_name(need.name) for need in direct_requirements(extras)}
