"""A torch that is absent, broken, without its driver, or next to another torch's torchvision is one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytest.importorskip("torch")

import torch

from dst.common.installed_versions import CHECKED
from trainer.cli_options import TORCH_CHECKED
from trainer.compat.torch import check_torch


def chat(packages: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in (CHECKED, TORCH_CHECKED)}
    return subprocess.run(
        [sys.executable, "-m", "trainer.cli", "chat", "--model", "nowhere"],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])},
        cwd=packages,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')",
            "torch is not installed, and dsvl-train needs it: pip install 'dsvl[train]'",
        ),
        (
            "raise OSError('libcudart.so.12: cannot open shared object file')",
            "torch is installed but cannot be loaded (libcudart.so.12: cannot open shared object file); install it",
        ),
        (
            "import a_package_that_it_needs",
            "torch is installed, but not what it needs: No module named 'a_package_that_it_needs'; install it again",
        ),
    ],
)
def test_a_torch_that_cannot_be_used_ends_the_command_with_one_line(tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(code)
    done = chat(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")


def test_the_installed_torch_is_not_complained_about_beyond_what_it_lacks() -> None:
    actual = check_torch()
    assert len(actual) == (torch.version.cuda is not None and not torch.cuda.is_available())


def test_a_torchvision_of_another_torch_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        version = "0.22.0"
        requires = ("numpy", "torch (==2.7.0)")

    monkeypatch.setattr(metadata, "distribution", lambda name: Other)
    monkeypatch.setattr(torch.version, "cuda", None)
    (line,) = check_torch()
    assert line.startswith(f"torchvision 0.22.0 was built for torch==2.7.0, but torch {torch.__version__} is installed")


@pytest.mark.parametrize("said", ["", "The NVIDIA driver on your system is too old (found version 11040)"])
def test_a_cuda_torch_without_a_driver_is_one_line_and_none_of_torchs_own(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> bool:
        if said:
            warnings.warn(said + " (Triggered internally at CUDAFunctions.cpp:109.)", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (line,) = check_torch()
    assert line == (
        f"torch {torch.__version__} is built for CUDA 13.0, but cannot use a GPU: "
        f"{said or 'no NVIDIA driver was found'}; running on the CPU. Without a GPU install torch's CPU build; with "
        "one, check that nvidia-smi works"
    )


def test_a_cuda_torch_with_a_device_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    works: Any = lambda: True  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", works)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert check_torch() == []
