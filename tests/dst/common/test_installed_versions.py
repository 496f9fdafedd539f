"""Versions that were not tested are one warning line, once for a command; those known to break end it before work."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dst.common.installed_versions import BROKEN, CHECKED, check_installed, report_installed
from dst.errors import ConfigError
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(f'{need}; extra == "{extra}"' for extra, needs in PROJECT["optional-dependencies"].items() for need in needs),
]


def check(*extras: str, **installed: str) -> tuple[list[str], list[str]]:
    actual = check_installed(extras or ("train",), requirements=REQUIREMENTS, version_of=installed.get)
    return list(actual.warnings), list(actual.errors)


def test_a_version_inside_the_range_is_not_mentioned() -> None:
    assert check(transformers="5.24.0", torch="2.13.0+cpu", pillow="99") == ([], [])


@pytest.mark.parametrize("version", ["5.25.0", "6.0.0.dev3", "5.99+mine", "no version"])
def test_a_version_outside_the_range_is_one_line_that_names_package_version_and_range(version: str) -> None:
    assert check(transformers=version) == (
        [
            f"transformers {version} is installed, but dsvl was tested with >=5.16,<5.25; if something fails, "
            "pip install 'transformers>=5.16,<5.25'"
        ],
        [],
    )


def test_builds_of_an_admitted_release_are_admitted() -> None:
    assert check(torch="2.11.0+cu130", polars="1.20.0rc1") == ([], [])


def test_only_the_extras_that_the_command_uses_are_looked_at() -> None:
    assert check("remote", transformers="9", ray="0.1", click="1.0")[0] == [
        "click 1.0 is installed, but dsvl was tested with >=8.2; if something fails, pip install 'click>=8.2'"
    ]


@pytest.mark.parametrize("entry", BROKEN, ids=lambda entry: entry.package)
def test_a_version_known_to_break_is_an_error_and_no_range_admits_one(
    entry: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = next(each for each in BROKEN if each is entry)
    warnings, errors = check(**{broken.package: "0.1"})
    assert warnings == []
    assert len(errors) == 1
    assert errors[0].startswith(f"{broken.package} 0.1 does not work here: {broken.reason}; expected >=")
    (need,) = (
        need for need in map(Requirement, PROJECT["optional-dependencies"]["train"]) if need.name == broken.package
    )
    lowest = next(each.version for each in need.specifier if each.operator == ">=")
    assert check(**{broken.package: lowest}) == ([], [])


def test_libraries_whose_private_parts_are_used_have_an_upper_bound_that_the_installed_version_meets() -> None:
    needs = {need.name: need for need in map(Requirement, REQUIREMENTS)}
    for name in (
        "transformers",
        "deepspeed",
        "peft",
        "torch",
        "torchvision",
        "open_clip_torch",
        "ray",
        "megatron-energon",
    ):
        operators = {each.operator for each in needs[name].specifier}
        assert operators == {">=", "<"}, name


def test_it_is_said_once_for_a_command_and_what_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHECKED, raising=False)
    said: list[str] = []
    for _ in range(2):
        report_installed((), lambda: ["a driver is missing"], said.append)
    assert said.count("a driver is missing") == 1
    assert os.environ[CHECKED]
    monkeypatch.delenv(CHECKED)


# The programs


def run(module: str, *arguments: str, packages: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != CHECKED}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])},
        cwd=packages,
        capture_output=True,
        text=True,
        check=False,
    )


def pretend(folder: Path, name: str, version: str) -> None:
    """Metadata that Python finds before that of the installed package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_dsvl_prep_warns_once_and_works_on(tmp_path: Path) -> None:
    pretend(tmp_path, "pillow", "1.0")
    pretend(tmp_path, "transformers", "4.57.6")  # dsvl-prep has no use for it
    done = run("preprocess.cli", "adapters", packages=tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "warning: pillow 1.0 is installed, but dsvl was tested with >=10.4; if something fails, "
        "pip install 'pillow>=10.4'"
    ]
    assert run("preprocess.cli", "adapters", "--help", packages=tmp_path).stderr == ""


def test_dsvl_train_ends_before_work_with_a_version_that_breaks(tmp_path: Path) -> None:
    pretend(tmp_path, "transformers", "4.57.6")
    pretend(tmp_path, "peft", "0.17.1")
    done = run("trainer.cli", "chat", "--model", "nowhere", packages=tmp_path)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("error: peft 0.17.1 does not work here: it imports HybridCache")
    assert second.startswith("error: transformers 4.57.6 does not work here: ")
    assert second.endswith("expected >=5.16,<5.25: pip install 'transformers>=5.16,<5.25'")


def test_errors_of_versions_are_configuration_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    import dst.common.installed_versions as checked

    monkeypatch.delenv(CHECKED, raising=False)
    monkeypatch.setattr(checked, "_own_requirements", lambda: ["peft>=0.18"])
    monkeypatch.setattr(checked, "_installed_version", lambda name: "0.1")
    with pytest.raises(ConfigError, match=r"peft 0\.1 does not work here"):
        report_installed((), lambda: pytest.fail("work began"), lambda line: None)
    monkeypatch.delenv(CHECKED)
