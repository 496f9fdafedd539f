"""Small projects with wheels of their own, for which tools/environment/setup_venv.py makes environments offline."""

from __future__ import annotations

import base64
import ensurepip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import venv_install
import venv_repair
from tests.support.paths import ROOT

SCRIPT = ROOT / "tools/environment/setup_venv.py"


TIMEOUT_S = 120
STOPPED = "stopped; run the same command again to resume"
MANY = 3000
"""Files of a wheel that takes long enough to unpack to be stopped meanwhile"""

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "1.0"

[project.optional-dependencies]
train = ["left"]
dev = ["left", "right"]
large = ["large"]
gpu = ["torch"]
"""

# What setuptools would do. It can be held, so that a test finds pip running.
BACKEND = """\
import os, time, tomllib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    hold = os.environ.get("HOLD")
    if hold:
        open(hold + ".reached", "w").close()
        while not os.path.exists(hold + ".go"):
            time.sleep(0.01)
    with open("pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    metadata = ["Metadata-Version: 2.1", "Name: small", "Version: 1.0"]
    for extra, needs in extras.items():
        metadata += ["Provides-Extra: " + extra]
        metadata += ["Requires-Dist: " + need + "; extra == '" + extra + "'" for need in needs]
    tags = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files = {"METADATA": "\\n".join(metadata) + "\\n", "WHEEL": tags, "RECORD": ""}
    files["RECORD"] = "".join("small-1.0.dist-info/" + name + ",,\\n" for name in files)
    with zipfile.ZipFile(os.path.join(folder, "small-1.0-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr("small-1.0.dist-info/" + name, text)
    return "small-1.0-py3-none-any.whl"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    folder: Path

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def wheels(self) -> Path:
        return self.folder.with_name("wheels")  # pip cuts settings at spaces, so this path has none

    @property
    def lock(self) -> Path:
        return self.folder / "lock.txt"

    @property
    def site_packages(self) -> Path:
        return self.venv / f"lib/python{venv_install.python_version()}/site-packages"

    def pin(self, **versions: str) -> None:
        pins = {"pip": ensurepip.version(), "setuptools": "99", "wheel": "99", "left": "1", "right": "1", **versions}
        self.lock.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))

    def job(self, *extras: str) -> venv_install.Job:
        return venv_install.Job(venv=self.venv, lock=self.lock, project=self.folder, extras=extras)

    def start(
        self, *extras: str, python: str = sys.executable, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """The script in a process group of its own."""
        options = {"--venv": self.venv, "--lock": self.lock, "--project": self.folder, "--extras": ",".join(extras)}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        return subprocess.Popen(
            [python, str(SCRIPT), *(str(word) for pair in options.items() for word in pair)],
            env={**inherited, **offline, **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )

    def run(self, *extras: str, python: str = sys.executable, code: int = 0) -> str:
        """What the script writes."""
        return ended(self.start(*extras, python=python), code)

    def modules(self, *names: str) -> str:
        """What modules of the environment say when they are imported by its Python."""
        code = f"import {', '.join(names)}\nfor module in {', '.join(names)},: print(module.__name__, module.WHICH)"
        command = [str(self.venv / "bin/python"), "-I", "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def installed(self) -> set[str]:
        return {info.name.removesuffix(venv_repair.INFO) for info in self.site_packages.glob("*.dist-info")}


def hear_interrupts() -> None:
    """A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: subprocess.Popen[str], code: int) -> str:
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return output + errors


def wait_for(reached: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until something has happened; not a time."""
    end = time.monotonic() + TIMEOUT_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)


def stop(process: subprocess.Popen[str], signum: signal.Signals) -> None:
    """Stop the script and all that it started, as Ctrl-C in a terminal does."""
    os.killpg(process.pid, signum)
    if signum == signal.SIGINT:
        assert ended(process, 130).splitlines()[-1] == STOPPED
    else:
        ended(process, -signum)


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> None:
    info = f"{name}-{version}.dist-info"
    everything = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in everything.items():
            wheel.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            record += f"{path},sha256={digest},{len(text.encode())}\n"
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


def small_project(folder: Path) -> Project:
    project = Project(folder=folder)
    folder.mkdir()
    project.wheels.mkdir()
    for name, version in (("setuptools", "99"), ("wheel", "99"), ("left", "1"), ("left", "2"), ("right", "1")):
        files = {
            f"{name}/__init__.py": f"from .part import WHICH\nWHICH = '{version}'\n",
            f"{name}/part.py": "WHICH = 0",
        }
        write_wheel(project.wheels, name, version, files)
    write_wheel(
        project.wheels, "large", "1", {f"large/part_{number}.py": f"WHICH = {number}\n" for number in range(MANY)}
    )
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    project.pin()
    return project


def held(project: Project, *extras: str) -> subprocess.Popen[str]:
    """A run that is inside pip, and stays there until `release`."""
    process = project.start(*extras, variables={"HOLD": str(project.folder / "hold")})
    wait_for((project.folder / "hold.reached").exists, process)
    return process


def release(project: Project) -> None:
    (project.folder / "hold.go").touch()


# Fixtures of tests/tools/conftest.py


def new(tmp_path: Path) -> Project:
    """A project without an environment."""
    return small_project(tmp_path / "a project")


def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with an environment, made once for `ready`."""
    project = small_project(tmp_path_factory.mktemp("made") / "a project")
    project.run("train")
    shutil.copytree(project.venv, project.folder / "kept", symlinks=True)
    return project


def ready(made: Project) -> Iterator[Project]:
    """A project with an environment that has the extra `train`; copied, since making one takes seconds."""
    shutil.rmtree(made.venv)
    shutil.copytree(made.folder / "kept", made.venv, symlinks=True, copy_function=link_or_copy)
    made.pin()
    yield made
    for path in made.folder.glob("hold.*"):
        path.unlink()


def link_or_copy(source: str, target: str) -> None:
    """pip's thousand files are linked: what changes one must remove it first."""
    if "/site-packages/pip/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)
