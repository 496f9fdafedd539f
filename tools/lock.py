"""Write the lock files: the version of every package that an install of dsvl with any extras may bring.

Each is a constraints file for pip, for Linux and macOS and every supported Python ([tool.uv] in pyproject.toml). uv
resolves it. An address or a path on this machine is never written to it.

    python3 tools/lock.py                                                    # all of them
    python3 tools/lock.py --only lock-cpu.txt --out build/lock-newest.txt    # for `make test-newest`
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.9"
TORCH = "2.13.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    resolution: str = "highest"
    constraints: tuple[str, ...] = ()
    extra_sources: bool = False
    """Whether to search the indexes and folders that pip searches in addition to its main index: they may have a CPU
    build of torch, which uv would otherwise prefer in every lock."""


LOCKS = {
    "lock-cpu.txt": Lock(
        constraints=(f"torch=={TORCH}+cpu ; sys_platform == 'linux'", f"torch=={TORCH} ; sys_platform != 'linux'"),
        extra_sources=True,
    ),
    "lock-cuda.txt": Lock(),
    "lock-oldest.txt": Lock(resolution="lowest-direct"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the version of every package to lock files.")
    parser.add_argument("--only", choices=LOCKS, help="write this one; all if not given")
    parser.add_argument("--out", type=Path, help="where to write it; in the repository under its name if not given")
    options = parser.parse_args(arguments)
    if options.out and not options.only:
        parser.error("--out needs --only")
    names = [options.only] if options.only else list(LOCKS)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            uv, settings = install_uv(Path(scratch))
            for name in names:
                text = resolve(uv, LOCKS[name], settings, Path(scratch))
                write(options.out or ROOT / name, text)
        except subprocess.CalledProcessError as error:
            command = " ".join(map(str, error.cmd[:3]))
            print(f"{error.stderr}{command} failed (see above); the lock was not written", file=sys.stderr)
            return 1
    return 0


def install_uv(scratch: Path) -> tuple[Path, list[str]]:
    """The uv program, and the lines of `pip config list`."""
    venv.create(scratch / "venv", with_pip=True)
    pip = (scratch / "venv/bin/python", "-m", "pip", "--disable-pip-version-check")
    _run([*pip, "install", "-qq", UV])
    return scratch / "venv/bin/uv", _run([*pip, "config", "list"]).splitlines()


def resolve(uv: Path, lock: Lock, settings: Sequence[str], scratch: Path) -> str:
    """Raises CalledProcessError. uv takes versions from an output file that exists, so it gets a new one."""
    constraints, out = scratch / "constraints.txt", scratch / "lock.txt"
    constraints.write_text("".join(f"{line}\n" for line in lock.constraints), encoding="utf-8")
    out.unlink(missing_ok=True)
    _run(
        [
            *(uv, "pip", "compile", "pyproject.toml", "--quiet", "--all-extras", "--group", "setup"),
            *("--universal", "--python-version", "3.11", "--no-python-downloads", "--resolution", lock.resolution),
            *("--upgrade", "--custom-compile-command", "make lock", "--output-file", out),
            *(("--constraints", constraints) if lock.constraints else ()),
            *uv_options(settings, extra_sources=lock.extra_sources),
        ]
    )
    return without_constraint_notes(out.read_text(encoding="utf-8"))


def uv_options(settings: Sequence[str], *, extra_sources: bool) -> list[str]:
    """The options that make uv search where pip searches. uv does not read pip's settings, nor PIP_... variables.

    Indexes in local folders are left out: they mirror what one Python needs, and a lock is for all of them.
    """
    pip_settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the last one that has a setting decides
        for line in settings:
            if match := re.fullmatch(rf"{section}\.([\w-]+)=('.*'|\".*\")", line):
                pip_settings[match[1]] = str(ast.literal_eval(match[2]))
    options = []
    for name, option in (("index-url", "--default-index"), ("cert", "--cert")):
        if name in pip_settings:
            options += [option, pip_settings[name]]
    if extra_sources:
        for folder in pip_settings.get("find-links", "").split():
            options += ["--find-links", folder]
        for index in pip_settings.get("extra-index-url", "").split():
            if not index.startswith("file:"):
                options += ["--index", index]
        options += ["--index-strategy", "unsafe-best-match"]  # as pip: the newest of all indexes
    return options


def without_constraint_notes(text: str) -> str:
    """They name a temporary file."""
    return re.sub(r"^ +#   -c .*\n", "", text, flags=re.MULTILINE)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    print(f"{path}: {len(re.findall('^[^ #]', text, re.MULTILINE))} versions")


def _run(command: Sequence[str | Path]) -> str:
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
