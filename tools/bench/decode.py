"""Compare image decoders on one thread: bare ones, and ours with the resizing that CLIP at 336 pixels needs.

    python -m tools.bench.decode [--repeats 9]      # OpenCV is measured if it is installed

Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from tools.bench.data import PHOTOS, ROOT, machine, make_images

sys.path.insert(0, str(ROOT))

from preprocess.images.prepare import ImagePolicy, prepare_image
from shards.images.decode import DECODERS, Pixels, decode_pillow

POLICY = ImagePolicy(store="resized")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="the best counts: noise only ever adds")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(machine())
        make_images(Path(folder), 16)
        originals = [path.read_bytes() for path in sorted((Path(folder) / PHOTOS).iterdir())]
    stored = [prepare_image(data, POLICY).data for data in originals]
    expected = [decode_pillow(data, POLICY.geometry)[0] for data in originals]
    print("| | original 640x480, ms | difference from Pillow, of 255 | stored 336x336, ms |\n|---|---|---|---|")
    for name, decode in decoders().items():
        milliseconds = [best(decode, images, repeats) for images in (originals, stored)]
        pixels = [decode(data) for data in originals]
        far = ""
        if pixels[0].shape == expected[0].shape:
            pairs = zip(pixels, expected, strict=True)
            far = f"{np.mean([np.abs(one.astype(int) - other).mean() for one, other in pairs]):.4f}"
        print(f"| {name} | {milliseconds[0]:.2f} | {far} | {milliseconds[1]:.2f} |")


def decoders() -> dict[str, Callable[[bytes], Pixels]]:
    out = np.empty((1, POLICY.size, POLICY.size, 3), np.uint8)

    def ours(name: str) -> Callable[[bytes], Pixels]:
        def decode(data: bytes) -> Pixels:
            DECODERS[name](data, POLICY.geometry, out)
            copied: Pixels = out[0].copy()
            return copied

        return decode

    decoders: dict[str, Callable[[bytes], Pixels]] = {
        "Pillow, decoding alone": lambda data: np.asarray(Image.open(io.BytesIO(data))),
        "simplejpeg, decoding alone": lambda data: simplejpeg.decode_jpeg(data),
    }
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        decoders["OpenCV, decoding alone"] = lambda data: np.asarray(
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8
        )
    return decoders | {
        "Pillow, with resizing": lambda data: decode_pillow(data, POLICY.geometry)[0],
        "ours, exact": ours("exact"),
        "ours, fast": ours("fast"),
    }


def best(decode: Callable[[bytes], Pixels], images: list[bytes], repeats: int) -> float:
    """Milliseconds an image."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for data in images:
            decode(data)
        seconds.append((time.perf_counter() - start) / len(images))
    return min(seconds) * 1e3


if __name__ == "__main__":
    main()
