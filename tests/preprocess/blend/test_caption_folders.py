"""init finds folders of images with texts, and what it writes reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from preprocess.adapters.lookup import read_records
from preprocess.blend.discover import discover
from preprocess.blend.draft import write_blend
from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import load_blend
from preprocess.blend.resolve import request_of
from preprocess.compiler.messages import messages_of
from preprocess.conversation import Conversation
from preprocess.errors import ConfigError
from preprocess.images.stores import open_stores, prepare_store


def write_pairs(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.jpg").write_bytes(name.encode())
        (root / f"{name}.txt").write_text(f"About {name}.")


def found_in(root: Path) -> list[tuple[str, Any]]:
    """(root, annotations) of each dataset of the blend file that is written for a folder."""
    out = root.parent / "blend.yaml"
    write_blend(root, out)
    datasets = yaml.safe_load(out.read_text(encoding="utf-8"))["datasets"]
    return [(dataset["root"], dataset["annotations"]) for dataset in datasets]


def test_a_folder_of_captions_is_found_and_read_with_its_images(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data/photos", "a", "more/b", "more/deep/c")
    (tmp_path / "data/photos/LICENSE").write_text("x")
    assert found_in(tmp_path / "data") == [("data/photos", ["."])]
    blend = load_blend(tmp_path / "blend.yaml")
    (dataset,) = blend.datasets
    inputs = find_inputs(blend, tmp_path)[dataset.name]
    for path in inputs.images:
        prepare_store(path, tmp_path / "cache")
    stores = open_stores(inputs.images, tmp_path / "cache")
    records = list(read_records(dataset.adapter, request_of(blend, dataset, inputs)))
    assert [(item.id, stores.read(item.images[0])) for item in records if isinstance(item, Conversation)] == [
        ("photos/a", b"a"),
        ("photos/more/b", b"more/b"),
        ("photos/more/deep/c", b"more/deep/c"),
    ]
    assert isinstance(records[0], Conversation)
    assert messages_of(records[0], dataset.prompt) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe this image."}]},
        {"role": "assistant", "content": "About a."},
    ]


def test_folders_that_are_all_of_their_parents_are_one_dataset(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", "shards/00000/a", "shards/00001/b", "split/train/c", "split/val/d", "some/one/e")
    (tmp_path / "data/some/other").mkdir()
    (tmp_path / "data/some/other/x.txt").write_text("words alone")
    assert found_in(tmp_path / "data") == [("data/shards", ["."]), ("data/some/one", ["."]), ("data/split", ["."])]


def test_the_root_itself_may_be_a_folder_of_captions(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", "a", "b/c")
    assert found_in(tmp_path / "data") == [("data", ["."])]


def test_images_and_texts_of_other_names_are_no_captions(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match="no dataset there"):
        discover(tmp_path)
