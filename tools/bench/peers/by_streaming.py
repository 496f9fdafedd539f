"""mosaicml-streaming over MDS shards written from the same samples: its shuffle and its loader."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import harness
from preprocessing import Preprocess, make_torchvision_importable

make_torchvision_importable()
import streaming  # noqa: E402  it imports torchvision


def prepare(task: harness.Task) -> None:
    """A column for the tokens, and one for the image's bytes: each sample here has one image."""
    folder = task.folder / "mds"
    shutil.rmtree(folder, ignore_errors=True)
    with streaming.MDSWriter(out=str(folder), columns={"tokens": "ndarray:int32", "image": "bytes"}) as writer:
        for path in sorted(task.folder.glob(f"{task.build}/shards/*/train-*.tar")):
            with tarfile.open(path) as tar:
                members = {member.name: tar.extractfile(member) for member in tar}
                contents = {name: file.read() for name, file in members.items() if file is not None}
            for name in contents:
                key, _, part = name.partition(".")
                if part == "tokens.npy":
                    tokens = np.load(io.BytesIO(contents[name]))
                    writer.write({"tokens": tokens, "image": contents[f"{key}.0.jpg"]})


class Samples(streaming.StreamingDataset):  # type: ignore[misc]  # the library has no types
    def __init__(self, folder: Path, task: harness.Task, preprocess: Preprocess) -> None:
        super().__init__(local=str(folder), batch_size=task.batch_size, shuffle=True, shuffle_seed=0)
        self._preprocess = preprocess if task.mode == "full" else None

    def __getitem__(self, index: Any) -> harness.Sample:
        sample = super().__getitem__(index)
        if self._preprocess is None:
            return sample["tokens"], [sample["image"]]
        with Image.open(io.BytesIO(sample["image"])) as image:
            return sample["tokens"], [self._preprocess(image.convert("RGB"))]


def batches(task: harness.Task, preprocess: Preprocess) -> Iterable[Any]:
    dataset = Samples(task.folder / "mds", task, preprocess)
    loader: Iterable[Any] = streaming.StreamingDataLoader(
        dataset, batch_size=task.batch_size, num_workers=task.workers, collate_fn=harness.collate
    )
    return loader


if __name__ == "__main__":
    harness.main(batches, prepare)
