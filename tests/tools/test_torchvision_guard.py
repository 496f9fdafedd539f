"""In an environment of setup_venv.py the lines of a model card run as they stand, also next to a CPU build of torch."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from venv_torchvision import GUARD, write_guard


def distributions(site_packages: Path, *names: str) -> Path:
    for name in names:
        (site_packages / f"{name}.dist-info").mkdir(parents=True)
    return site_packages


@pytest.mark.parametrize(
    ("installed", "is_written"),
    [
        (("torch-2.13.0+cpu", "torchvision-0.28.0"), True),
        (("torch-2.13.0", "torchvision-0.28.0"), False),
        (("torch-2.13.0+cpu", "torchvision-0.28.0+cpu"), False),
        (("torch-2.13.0+cpu",), False),
        ((), False),
    ],
)
def test_the_guard_is_written_only_where_torchvision_does_not_fit_torch(
    installed: tuple[str, ...], is_written: bool, tmp_path: Path
) -> None:
    site_packages = distributions(tmp_path, *installed)
    write_guard(site_packages, ROOT)
    assert (site_packages / GUARD).exists() == is_written


def test_the_guard_is_removed_when_it_is_not_needed_any_more(tmp_path: Path) -> None:
    site_packages = distributions(tmp_path, "torch-2.13.0+cpu", "torchvision-0.28.0")
    write_guard(site_packages, ROOT)
    (site_packages / "torch-2.13.0+cpu.dist-info").rmdir()
    distributions(tmp_path, "torch-2.13.0")
    write_guard(site_packages, ROOT)
    assert not (site_packages / GUARD).exists()


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """That of an environment which has the packages of this one, this project, and the guard if it is needed."""
    installed = Path(sysconfig.get_path("purelib"))
    venv.create(tmp_path / "venv", symlinks=True)
    (site_packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site_packages / "packages.pth").write_text(f"{ROOT}\n{installed}\n")
    for name in ("torch", "torchvision"):
        for info in installed.glob(f"{name}-*.dist-info"):
            (site_packages / info.name).mkdir()
    write_guard(site_packages, ROOT)
    for info in site_packages.glob("torch*.dist-info"):
        info.rmdir()
    return tmp_path / "venv/bin/python"


def run(python: Path, code: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_start_of_python_imports_nothing_of_dsvl_or_torch(python: Path, tmp_path: Path) -> None:
    said = run(python, "import sys; print(*{'torch', 'trainer', 'torchvision'} & set(sys.modules))", tmp_path)
    assert said.strip() == ""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_the_code_of_a_model_card_runs_as_it_stands(python: Path, tmp_path: Path) -> None:
    from tests.support import exports
    from trainer.export.export import export_model

    build = exports.make_build(tmp_path)
    config = exports.config_of(build)
    folder = tmp_path / "path/of/this/folder"
    folder.parent.mkdir(parents=True)
    export_model(exports.make_model(config, build), config, build, folder, step=1)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        run(python, block, tmp_path)
