"""Imports run one way, and the data half needs nothing of the training half."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"dst", "preprocess", "shards", "trainer", "tools", "tests"}
MAY_IMPORT = {
    "dst": {"dst"},
    "shards": {"shards"},
    "preprocess": {"preprocess", "dst", "shards"},
    "trainer": {"trainer", "dst", "shards"},
}
HEAVY = {"torch", "transformers", "deepspeed", "ray", "open_clip", "peft"}
TORCH_PART = {
    f"shards/{name}.py" for name in ("batch", "decode", "loader", "workers")
}  # what makes tensors; `import shards` does not import it


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_between_our_packages_run_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert imports(path) & OURS <= MAY_IMPORT[package], path


@pytest.mark.parametrize("package", ["dst", "shards", "preprocess"])
def test_the_data_half_names_no_heavy_package(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        allowed = {"torch"} if path.relative_to(ROOT).as_posix() in TORCH_PART else set()
        assert not imports(path) & HEAVY - allowed, path


LIGHT = ["dst", "shards", "preprocess.build", "preprocess.cli", "preprocess.inspector", "trainer", "trainer.cli"]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_the_data_half_or_a_command_line_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not HEAVY & set(done.stdout.split())


def test_an_install_of_the_data_half_asks_for_no_heavy_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = {need.split(">")[0].split("[")[0] for need in project["dependencies"]}
    assert not needs & {*HEAVY, "open_clip_torch", "webdataset"}
    assert {"train", "ray"} <= set(project["optional-dependencies"])


def test_every_package_is_part_of_an_install() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(listed) == found
