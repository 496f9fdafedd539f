"""`import dst` is cheap, and all of its names are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dst


def test_every_public_name_is_found_and_any_other_is_an_attribute_error() -> None:
    assert sorted(dir(dst)) == sorted(dst.__all__)
    assert all(getattr(dst, name) is not None for name in dst.__all__)
    assert "role" in dst.load_template("plain").source
    with pytest.raises(AttributeError, match="module 'dst' has no attribute 'load_templates'"):
        _ = dst.load_templates  # type: ignore[attr-defined]


def test_the_errors_are_imported_without_tokenizer_and_template_engine() -> None:
    program = "import sys, dst.errors; print(sorted({'jinja2', 'numpy', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
