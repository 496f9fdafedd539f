"""Installs of dsvl in clean environments, and a user's folder for their commands."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support import small_blends
from tests.support.clean_venvs import CleanVenv, NotInstalledError
from tests.support.paths import ROOT

Venvs = Callable[..., CleanVenv]


def name_of(extras: tuple[str, ...]) -> str:
    return "+".join(extras) or "base"


def venvs(tmp_path_factory: pytest.TempPathFactory) -> Venvs:
    """A fixture: venvs("train") is an install of dsvl[train]; each is made once."""

    @cache
    def make(*extras: str) -> CleanVenv:
        try:
            return CleanVenv.make(tmp_path_factory.mktemp(name_of(extras)), extras)
        except NotInstalledError as error:
            pytest.skip(str(error))

    return make


def make_user_folder(folder: Path) -> Path:
    """A user's folder: a copy of examples/, and a blend of two small datasets that have held-out samples."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    small_blends.write_blend(
        folder / "small.yaml",
        [
            {"name": "llava", "adapter": "llava", "root": "examples/data"},
            {"name": "captions", "adapter": "coco_caption", "root": "examples/data"},
        ],
        tokenizer="examples/tokenizer",
        image_tokens=144,
        image={"store": "resized", "size": 336},
        limits={"max_length": 2048},
    )
    return folder


def user_folder(tmp_path: Path) -> Path:
    """A fixture."""
    return make_user_folder(tmp_path)


def built(venvs: Venvs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixture: the small blend, built by an install of the data half."""
    user_folder = make_user_folder(tmp_path_factory.mktemp("built"))
    succeed(
        venvs().run("dsvl-prep", "build", "--blend", "small.yaml", "--out", "build", "--workers", "1", cwd=user_folder)
    )
    return user_folder / "build"


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed. No warning of a library reaches a user, nor one of ours about tested versions."""
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    without_gpu = "warning: torch "  # a CUDA build of torch on a machine without a driver
    lines = [line for line in done.stderr.splitlines() if not line.startswith(without_gpu)]
    assert not [line for line in lines if "warning" in line.lower()], done.stderr
    return done.stdout
