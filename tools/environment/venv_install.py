"""The steps of setup_venv.py: make the environment, repair it, install into it, and record what it holds.

An environment whose making was stopped is made again; one that pip was installing into is repaired (venv_repair.py)
before pip continues. pip inherits the lock (venv_state.py), so a pip that outlives its killed parent is waited for.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import venv_repair
from venv_state import OWN, State, exclusive, read_state, say, write_state
from venv_torchvision import write_guard

GRACE_S = 5.0
"""How long pip may take to clean up after Ctrl-C"""

LEADS_ASTRAY = ("PYTHONHOME", "PYTHONPATH", "PIP_PREFIX", "PIP_TARGET", "PIP_USER")
"""Variables that let pip see, or write to, packages outside the environment"""


class SetupError(Exception):
    """What is wrong, and the next step, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call of the command line, with absolute paths."""

    venv: Path
    lock: Path
    project: Path
    extras: tuple[str, ...]

    @property
    def python(self) -> Path:
        return self.venv / "bin/python"

    def target(self) -> State:
        return State(
            step="complete",
            folder=str(self.venv),
            python=python_version(),
            base=os.path.realpath(sys.base_prefix),
            project=str(self.project),
            pyproject=_digest(self.project / "pyproject.toml"),
            lock=_digest(self.lock),
            extras=self.extras,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # make passes it on
    try:
        set_up(parse(arguments))
    except KeyboardInterrupt:
        say("stopped; run the same command again to resume")
        return 130
    except (SetupError, OSError) as error:
        say(str(error))
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> Job:
    parser = argparse.ArgumentParser(description="Make or finish a virtual environment with dsvl, at locked versions.")
    parser.add_argument("--venv", type=Path, required=True, help="folder of the environment")
    parser.add_argument("--lock", type=Path, required=True, help="file with the version of every package")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, separated by commas")
    parser.add_argument("--project", type=Path, default=Path(__file__).parents[2], help="folder of pyproject.toml")
    given = parser.parse_args(arguments)
    extras = tuple(sorted({extra.strip() for extra in given.extras.split(",")} - {""}))
    return Job(venv=given.venv.resolve(), lock=given.lock.resolve(), project=given.project.resolve(), extras=extras)


def set_up(job: Job) -> None:
    """Bring the environment to the expected state. Raises SetupError and OSError."""
    target = job.target()
    if is_ready(job, target):
        return
    refuse_other_folders(job.venv)
    with exclusive(job.venv) as lock_descriptor:
        state = read_state(job.venv)
        if state is not None and is_ready(job, target):
            return  # the run that held the lock did it
        runner = Runner(inherited=lock_descriptor)
        site_packages = usable_site_packages(job, state, target)
        if site_packages is None:
            site_packages = make_venv(job, target, runner)
            state = None
        kept = set(state.extras) & project_extras(job.project) if state else set()
        target = replace(target, extras=tuple(sorted(kept | set(target.extras))))
        write_state(job.venv, replace(target, step="packages"))
        install(job, target, site_packages, runner)
        write_state(job.venv, target)


def is_ready(job: Job, target: State) -> bool:
    state = read_state(job.venv)
    return state is not None and state.holds(target) and job.python.exists()  # its link may lead nowhere by now


# The environment itself


def refuse_other_folders(venv: Path) -> None:
    """Nothing is removed from, or written to, a folder that is not an environment. Raises SetupError."""
    if venv.is_dir() and not {"pyvenv.cfg", *OWN} & (names := {path.name for path in venv.iterdir()}) and names:
        raise SetupError(f"{venv} is not a virtual environment; remove it, or give another folder with --venv")


def usable_site_packages(job: Job, state: State | None, target: State) -> Path | None:
    """Where an environment that can be finished has its packages; or None, after removing one that cannot."""
    others = [path for path in job.venv.iterdir() if path.name not in OWN]
    if not others:
        return None
    site_packages, problem = examine(job, state, target)
    if problem is None:
        return site_packages
    say(f"making {job.venv} again: {problem}")
    write_state(job.venv, replace(target, step="venv"))  # first, so that a run which is stopped here is resumed
    for path in others:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return None


def examine(job: Job, state: State | None, target: State) -> tuple[Path, str | None]:
    """Where the environment has its packages, and why it cannot be used, if so."""
    nowhere = Path()
    if state is not None and state.step == "venv":
        return nowhere, "the run that made it was stopped"
    if state is not None and (state.folder, state.project) != (target.folder, target.project):
        return nowhere, f"it was made as {state.folder} for {state.project}"
    code = (
        "import json, os, sys, sysconfig, pip._internal.cli.main\n"
        "version = '%d.%d' % sys.version_info[:2]\n"
        "print(json.dumps([version, os.path.realpath(sys.base_prefix), sysconfig.get_path('purelib')]))"
    )
    try:
        answer = subprocess.run([job.python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
        version, base, site_packages = json.loads(answer)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return nowhere, "its Python or its pip does not start"
    if (version, base) != (target.python, target.base):
        return nowhere, f"it has Python {version} of {base}, and this run uses {target.python} of {target.base}"
    if any(info.name.startswith("pip-") for info in venv_repair.incomplete(Path(site_packages))):
        return nowhere, "its pip is incomplete"
    return Path(site_packages), None


def make_venv(job: Job, target: State, runner: Runner) -> Path:
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            f"Python {target.python} ({sys.executable}) has no ensurepip, which virtual environments need; install its "
            f"venv package (on Debian and Ubuntu: apt-get install python{target.python}-venv)"
        )
    write_state(job.venv, replace(target, step="venv"))
    base_python = getattr(sys, "_base_executable", sys.executable)  # not that of an active environment
    if message := runner.run([base_python, "-m", "venv", str(job.venv)]):
        raise SetupError(f"{message}no virtual environment could be made in {job.venv}; see above")
    return job.venv / f"lib/python{target.python}/site-packages"


# Packages


def install(job: Job, target: State, site_packages: Path, runner: Runner) -> None:
    """pip, setuptools and wheel come first: packages without wheels are built with them.

    Nothing is compiled to bytecode: of 20,000 modules, the first import compiles the one in ten that is used.
    """
    say(f"installing into {job.venv} at the versions of {job.lock.name}; the first time this takes minutes")
    if removed := venv_repair.repair(site_packages):
        say(f"installing again what was not complete: {', '.join(removed)}")
    pip = [str(job.python), "-I", "-m", "pip"]
    constrained = [*pip, "install", "-qq", "--disable-pip-version-check", "--no-compile", "-c", str(job.lock)]
    extras = f"[{','.join(target.extras)}]" if target.extras else ""
    steps = [
        [*constrained, "pip", "setuptools", "wheel"],
        [*constrained, "--no-build-isolation", "-e", f"{job.project}{extras}"],
    ]
    lock = job.lock.read_text(encoding="utf-8")
    if wrong := cpu_builds_that_are_not_locked(site_packages, lock):
        steps.insert(0, [*pip, "uninstall", "-qq", "-y", "--disable-pip-version-check", *wrong])
    for step in steps:
        if message := runner.run(step):
            raise SetupError(message + advice(job, site_packages, lock))
    write_guard(site_packages, job.project)


def cpu_builds_that_are_not_locked(site_packages: Path, lock: str) -> list[str]:
    """torch for the CPU where the lock asks for the CUDA build: pip takes 2.13.0+cpu for 2.13.0 and would keep it."""
    installed = (info.name.removesuffix(venv_repair.INFO).split("-") for info in site_packages.glob("*+cpu.dist-info"))
    return [name for name, version in installed if f"{name}=={version}" not in lock]


def advice(job: Job, site_packages: Path, lock: str) -> str:
    failed = f"pip could not install into {job.venv}; see above. Run the same command again to resume"
    if "+cpu" not in lock or list(site_packages.glob("torch-*.dist-info")):
        return failed
    return (
        f"{failed}. If no CPU build of torch for Python {python_version()} was found: give pip an index or a folder "
        "that has one (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS)"
    )


class Runner:
    """Runs programs that keep the lock for as long as they live, even if this process is killed."""

    def __init__(self, *, inherited: int) -> None:
        self.inherited = inherited

    def run(self, command: Sequence[str]) -> str:
        """What a failed program wrote to stderr, "" after success. Stopped by Ctrl-C, it may clean up, unseen."""
        environment = {name: value for name, value in os.environ.items() if name not in LEADS_ASTRAY}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
            process = subprocess.Popen(command, stderr=stderr, env=environment, pass_fds=[self.inherited])
            try:
                code = process.wait()
            except KeyboardInterrupt:
                _end(process)
                raise
            stderr.seek(0)
            return (stderr.read() or f"exit code {code}\n") if code else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """From a terminal, Ctrl-C has reached the program too, so it first gets time to clean up."""
    for signum in (None, signal.SIGTERM, signal.SIGKILL):
        if signum is not None:
            process.send_signal(signum)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(GRACE_S)
            return


# What a run is about


def project_extras(project: Path) -> set[str]:
    table = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    return set(table["project"].get("optional-dependencies", {}))


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
