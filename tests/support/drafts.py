"""What tests of `dsvl-prep init` share: files to find, and the datasets of the blend file that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from preprocess.blend.draft import write_blend
from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import load_blend
from tests.support.small_blends import jpeg


def found_in(root: Path) -> list[dict[str, Any]]:
    """The datasets of the blend file that is written for a folder; the file can be loaded, and its files are there."""
    out = root.parent / f"{root.name}.yaml"
    write_blend(root, out)
    find_inputs(load_blend(out), out.parent)
    datasets: list[dict[str, Any]] = yaml.safe_load(out.read_text(encoding="utf-8"))["datasets"]
    return datasets


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(1))
