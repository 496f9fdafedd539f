"""torchvision next to a torch that it does not fit is made importable, and left alone otherwise."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from trainer.compat.torchvision import declare_operators

FRESH = declare_operators.__wrapped__  # not what was answered before


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


def test_what_imports_torchvision_can_be_imported_after_a_module_of_compat() -> None:
    pytest.importorskip("open_clip")
    done = run(
        "import trainer.compat\nimport open_clip, peft\nfrom transformers import CLIPVisionModel, LlamaForCausalLM"
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_declared_where_torchvision_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert FRESH() is None


def test_nothing_is_declared_where_the_library_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_C.so").write_bytes(b"")
    loaded: list[Path] = []
    spec = ModuleSpec("torchvision", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert FRESH() is None
    assert loaded == [tmp_path / "_C.so"]
