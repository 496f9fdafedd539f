"""Other libraries read a build's tars as they are: plain WebDataset, and Megatron-Energon after its own `prepare`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import webdataset
from megatron import energon
from PIL import Image

import shards
from shards import Sample
from tests.support import small_blends

# Both leave closing the tars to the garbage collector; Energon's loader always asks torch to pin memory for a GPU.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator"),
]
ENERGON_SPLITS = {"train": "train", "eval": "val"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """A copy of a build's shards into which `energon prepare` wrote its files, and what we read from the build."""

    folder: Path
    samples: dict[str, list[Sample]]  # of a split, in the order of the shards' paths


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Guests:
    """Two datasets, several shards each; samples with none to three images."""
    folder = tmp_path_factory.mktemp("guests")
    for name in ("alpha", "beta"):
        images = small_blends.write_images(folder / name, 48)
        shown = [images[4 * number : 4 * number + number % 4] for number in range(12)]
        records = [small_blends.chat_record(number, images=names) for number, names in enumerate(shown)]
        small_blends.write_chat(folder / name, records)
    datasets = [{"name": name, "adapter": "chat", "root": name} for name in ("alpha", "beta")]
    blend = small_blends.write_blend(folder / "blend.yaml", datasets, split={"eval": 0.4}, shard={"max_samples": 3})
    small_blends.build(blend)
    build = shards.open(folder / "build")
    copy = shutil.copytree(folder / "build/shards", folder / "copy")
    energon_command = Path(sys.executable).with_name("energon")
    command = [str(energon_command), "prepare", str(copy), "--non-interactive", "--num-workers=1"]
    parts = [f"--split-parts={theirs}:.*/{ours}-.*" for ours, theirs in ENERGON_SPLITS.items()]
    subprocess.run([*command, *parts, "--sample-type=CrudeWebdataset"], check=True)
    return Guests(folder=copy, samples={split: list(build[split]) for split in ENERGON_SPLITS})


def by_webdataset(folder: Path, split: str, *, decode: bool) -> Iterable[dict[str, Any]]:
    paths = [str(path) for path in sorted(folder.glob(f"*/{split}-*.tar"))]
    raw = webdataset.WebDataset(paths, shardshuffle=False)
    reader: Iterable[dict[str, Any]] = raw.decode("pilrgb") if decode else raw
    return reader


def by_energon(folder: Path, split: str, *, decode: bool) -> Iterable[dict[str, Any]]:
    encoder = energon.DefaultTaskEncoder()
    encoder.decoder = energon.SampleDecoder(image_decode="pilrgb") if decode else None
    encoder.cookers = [energon.Cooker(energon.stateless(lambda sample: sample))]  # a dictionary of members, as it is
    dataset = energon.get_val_dataset(  # the one that reads a split once, in order
        folder,
        split_part=ENERGON_SPLITS[split],
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        task_encoder=encoder,
    )
    loader: Iterable[dict[str, Any]] = energon.get_loader(dataset)
    return loader


GUESTS: dict[str, Callable[..., Iterable[dict[str, Any]]]] = {"webdataset": by_webdataset, "energon": by_energon}


def members(sample: dict[str, Any]) -> dict[str, Any]:
    """Without the guest's own notes, such as __url__."""
    return {name: content for name, content in sample.items() if not name.startswith("__")}


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("split", ENERGON_SPLITS)
@pytest.mark.parametrize("guest", GUESTS)
def test_a_guest_gets_every_sample_in_our_order_with_equal_bytes(guests: Guests, guest: str, split: str) -> None:
    expected = guests.samples[split]
    assert expected
    assert {len(sample.images) for samples in guests.samples.values() for sample in samples} == {0, 1, 2, 3}
    got = list(GUESTS[guest](guests.folder, split, decode=False))
    assert [sample["__key__"] for sample in got] == [sample.key for sample in expected]
    for theirs, ours in zip(map(members, got), expected, strict=True):
        images = {f"{index}.jpg": bytes(image) for index, image in enumerate(ours.images)}
        assert theirs.keys() == {"json", "tokens.npy", *images}
        assert json.loads(theirs["json"]) == ours.metadata
        tokens = np.load(io.BytesIO(theirs["tokens.npy"]))
        assert tokens.dtype == np.int32
        assert np.array_equal(tokens, [ours.ids, ours.labels])
        assert {name: theirs[name] for name in images} == images


@pytest.mark.parametrize("guest", GUESTS)
def test_a_guest_s_own_decoders_understand_every_member(guests: Guests, guest: str) -> None:
    expected = guests.samples["train"]
    for theirs, ours in zip(GUESTS[guest](guests.folder, "train", decode=True), expected, strict=True):
        assert theirs["json"] == ours.metadata
        assert np.array_equal(theirs["tokens.npy"], [ours.ids, ours.labels])
        for index, image in enumerate(ours.images):
            assert np.array_equal(np.asarray(theirs[f"{index}.jpg"]), pixels(bytes(image)))
