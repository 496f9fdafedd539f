"""The lock files pin everything that an install may bring, and say nothing about the machine that wrote them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import setup_venv
from tests.support.clean_venvs import closure, direct_requirements
from tests.support.paths import ROOT
from tools import lock

MACHINES = [
    {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": platform,
        "platform_system": platform.capitalize(),
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    for python in ("3.11", "3.12")
    for platform, machine in (("linux", "x86_64"), ("darwin", "arm64"))
]


def name_of(machine: dict[str, str]) -> str:
    return f"{machine['sys_platform']}-{machine['python_version']}"


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@cache
def lines(name: str) -> list[Requirement]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [Requirement(line) for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def pins(name: str, machine: dict[str, str]) -> dict[str, Version]:
    """What the lock says for a machine, by canonical name."""
    actual: dict[str, Version] = {}
    for line in lines(name):
        if line.marker is None or line.marker.evaluate(machine):
            (pin,) = line.specifier
            assert pin.operator == "=="
            assert canonicalize_name(line.name) not in actual, f"{name}: two versions of {line.name}"
            actual[canonicalize_name(line.name)] = Version(pin.version)
    return actual


def direct() -> Iterator[Requirement]:
    """What pyproject.toml lists, in every extra and for setting up."""
    project = pyproject()["project"]
    groups = pyproject()["dependency-groups"]
    for part in (project["dependencies"], *project["optional-dependencies"].values(), *groups.values()):
        yield from map(Requirement, part)


def lower_bound(need: Requirement) -> Version:
    (bound,) = [one.version for one in need.specifier if one.operator == ">="]
    return Version(bound)


@pytest.mark.parametrize("name", lock.LOCKS)
@pytest.mark.parametrize("machine", MACHINES, ids=name_of)
def test_every_direct_dependency_is_pinned_inside_its_range(name: str, machine: dict[str, str]) -> None:
    pinned = pins(name, machine)
    for need in direct():
        assert need.marker is None
        version = pinned[canonicalize_name(need.name)]
        assert need.specifier.contains(version, prereleases=True), f"{name} has {need.name} {version}; run `make lock`"


def test_every_package_that_dsvl_needs_here_is_pinned() -> None:
    needed = closure(direct_requirements(pyproject()["project"]["optional-dependencies"]))
    missing = {name: needed - {canonicalize_name(line.name) for line in lines(name)} for name in lock.LOCKS}
    assert not all(missing.values()), f"no lock has all; run `make lock`: {missing}"


@pytest.mark.parametrize("machine", MACHINES, ids=name_of)
def test_torch_is_the_cpu_build_where_the_lock_is_for_it(machine: dict[str, str]) -> None:
    on_linux = machine["sys_platform"] == "linux"
    assert pins("lock-cpu.txt", machine)["torch"].local == ("cpu" if on_linux else None)
    assert pins("lock-cuda.txt", machine)["torch"].local is None
    assert pins("lock-cuda.txt", machine)["torch"].public == pins("lock-cpu.txt", machine)["torch"].public


@pytest.mark.parametrize("machine", MACHINES, ids=name_of)
def test_the_oldest_versions_are_those_at_the_lower_bounds(machine: dict[str, str]) -> None:
    """A bound of 8.1 may mean 8.1.3, if no other 8.1 can be installed together with everything else."""
    pinned = pins("lock-oldest.txt", machine)
    for need in direct():
        bound, version = lower_bound(need), pinned[canonicalize_name(need.name)]
        at_bound = (*version.release, 0, 0)[: len(bound.release)] == bound.release
        assert at_bound, f"lock-oldest.txt has {version} for {need.name}>={bound}; run `make lock`, or raise the bound"


@pytest.mark.parametrize("name", lock.LOCKS)
def test_a_lock_names_no_address_and_no_path(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "make lock" in text.splitlines()[1]
    assert not re.findall(r"https?:|file:|://|(?:^|\s)/|@ |^ *-", text, flags=re.MULTILINE)
    assert all(line.url is None for line in lines(name))


def test_locks_hold_for_the_pythons_that_the_set_up_accepts() -> None:
    environments = [Marker(text) for text in pyproject()["tool"]["uv"]["environments"]]
    for machine in MACHINES:
        assert any(marker.evaluate(machine) for marker in environments)
        assert tuple(map(int, machine["python_version"].split("."))) in setup_venv.SUPPORTED
    assert len({machine["python_version"] for machine in MACHINES}) == len(setup_venv.SUPPORTED)


# How uv is called


SETTINGS = [
    ":env:.find-links='/wheels /more wheels'",
    ":env:.index-url='https://inner.example/simple'",
    "global.cert='/etc/certificates.crt'",
    "global.extra-index-url='file:///mirror/simple https://cpu.example/whl'",
    "global.find-links='/old'",
    "install.index-url='https://outer.example/simple'",
    "global.timeout='60'",
]


def test_uv_searches_where_pip_does() -> None:
    assert lock.uv_options(SETTINGS, extra_sources=True) == [
        *("--default-index", "https://inner.example/simple", "--cert", "/etc/certificates.crt"),
        *("--find-links", "/wheels", "--find-links", "/more", "--find-links", "wheels"),  # pip cuts at spaces too
        *("--index", "https://cpu.example/whl", "--index-strategy", "unsafe-best-match"),
    ]


def test_a_lock_for_cuda_ignores_what_may_have_a_cpu_build() -> None:
    options = lock.uv_options(SETTINGS, extra_sources=False)
    assert options == ["--default-index", "https://inner.example/simple", "--cert", "/etc/certificates.crt"]
    assert lock.uv_options([], extra_sources=False) == []


def test_notes_that_name_the_constraints_file_are_left_out() -> None:
    text = "torch==2.13.0\n    # via\n    #   -c /tmp/x/constraints.txt\n    #   timm\n"
    assert lock.without_constraint_notes(text) == "torch==2.13.0\n    # via\n    #   timm\n"
