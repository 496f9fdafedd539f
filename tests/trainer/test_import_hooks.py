"""Calls around the imports of other packages' modules, in whatever order these are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ASK = "import sys; sys.path.insert(0, {root!r}); from trainer.import_hooks import after_import; said = []\n"
REGISTER = "after_import('table', lambda: said.append(__import__('table').ENTRY))\n"


def said(folder: Path, code: str) -> str:
    command = [sys.executable, "-c", ASK.format(root=str(ROOT)) + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A module that imports another before it has what is asked of it; that one may register."""
    (tmp_path / "table.py").write_text("import first\nENTRY = 1\n")
    (tmp_path / "first.py").write_text("import sys\nsys.modules['__main__'].__dict__.get('during', lambda: None)()\n")
    (tmp_path / "later.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (REGISTER + "print(said); import table; print(said)", "[]\n[1]"),
        ("import table\n" + REGISTER + "print(said)", "[1]"),
        (f"def during():\n    {REGISTER}import table; print(said); import later; print(said)", "[]\n[1]"),
    ],
    ids=["before", "after", "while it runs"],
)
def test_the_call_comes_once_and_when_the_module_has_run(code: str, expected: str, folder: Path) -> None:
    assert said(folder, code) == expected


def test_a_module_whose_import_failed_while_it_was_waited_for_is_waited_for_again(folder: Path) -> None:
    (folder / "table.py").write_text("import first\nimport os\nassert 'BROKEN' not in os.environ\nENTRY = 1\n")
    code = f"""
import os
os.environ["BROKEN"] = "1"
def during():
    {REGISTER}
try:
    import table
except AssertionError:
    pass
import later
print(said)
del os.environ["BROKEN"], during
import table
print(said)
"""
    assert said(folder, code) == "[]\n[1]"
