"""Measure tiles: which grids the two rules choose for photos, how fast a loader cuts them, and how full sequences are.

    python -m tools.bench.tiles [--photos FOLDER] [--records 400] [--repeats 5] [--only rules,loader,packing]

The loader reads as many tiles from images with tiles as from a build whose images are single tiles, in turn; the best
of all rounds counts. Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

import shards
from preprocess.compiler.build import run_build
from shards import Build
from shards.images.geometry import Geometry, GridRule
from shards.images.tiles import Grid, choose_grid
from shards.loader import Loader
from tools.bench.data import PHOTOS, ROOT, machine, make_images
from tools.bench.training.goals import Goal, print_goals

SIDE = 336
TILES = 6
IMAGE_TOKENS = 144
"""Of a tile: the 576 patches of ViT-L/14 at 336, joined by pixel shuffle"""
MOST = (4, 6, 12)
SHAPES = ((336, 336), (672, 336), (336, 1008), (672, 672), (1680, 336), (1008, 672))
"""Sizes of 1, 3, 4, 5, 6 and 7 tiles"""
SLOWER, FULL = 0.85, 0.97
LENGTH = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=ROOT / "examples/data" / PHOTOS, help="images for the rules")
    parser.add_argument("--records", type=int, default=400, help="images with tiles for the loader")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the best counts")
    parser.add_argument("--only", default="rules,loader,packing")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    print(f"{machine()}\n", flush=True)
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as scratch:
        if "rules" in parts:
            print_rules(sizes_in(arguments.photos))
        if "loader" in parts:
            goals += bench_loader(Path(scratch) / "loader", arguments.records, arguments.repeats)
        if "packing" in parts:
            goals += bench_packing(Path(scratch) / "packing")
    print_goals(goals)


def sizes_in(folder: Path) -> list[tuple[int, int]]:
    sizes = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(path) as image:
                sizes.append(image.size)
    return sizes


def print_rules(sizes: Sequence[tuple[int, int]]) -> None:
    """Of images of these sizes: tiles, the share of their pixels that are kept, enlarged canvas, and distortion."""
    single = _mean(_kept(size, Grid(1, 1)) for size in sizes)
    print(f"{len(sizes)} images, tiles of {SIDE}x{SIDE}; one square keeps {single:.0%} of their pixels\n")
    print("| `tiles` | `grid` | tiles of an image | own pixels kept | canvas that shows nothing new | stretched |")
    print("|---|---|---|---|---|---|")
    rules: tuple[GridRule, ...] = ("ratio", "resolution")
    for most in MOST:
        for rule in rules:
            geometry = Geometry(
                size=SIDE, fit="squash", pad_colour="clip", interpolation="bicubic", max_pixels=10**9, grid=rule
            )
            chosen = [(size, choose_grid(*size, geometry, most)) for size in sizes]
            print(
                f"| {most} | {rule} | {_mean(grid.tiles for _, grid in chosen):.2f} | "
                f"{_mean(_kept(*pair) for pair in chosen):.0%} | {_mean(1 - _new(*pair) for pair in chosen):.0%} | "
                f"{_mean(_stretch(*pair) for pair in chosen):.0%} |"
            )


def _kept(size: tuple[int, int], grid: Grid) -> float:
    """Share of an image's pixels that its canvas has room for."""
    (width, height), (wide, high) = size, grid.canvas(SIDE)
    return min(1, wide / width) * min(1, high / height)


def _new(size: tuple[int, int], grid: Grid) -> float:
    """Share of a canvas's pixels that are no enlargement."""
    (width, height), (wide, high) = size, grid.canvas(SIDE)
    return min(1, width / wide) * min(1, height / high)


def _stretch(size: tuple[int, int], grid: Grid) -> float:
    """How much longer one side becomes against the other."""
    ratio = (size[0] / size[1]) / (grid.columns / grid.rows)
    return max(ratio, 1 / ratio) - 1


def _mean(values: Iterator[float]) -> float:
    return statistics.mean(values)


def bench_loader(folder: Path, records: int, repeats: int) -> list[Goal]:
    """Tiles a second of a build with tiles, against images that are one tile each."""
    make_images(folder / "tiled", records, 24)
    tiled = _build(folder / "tiled", tiles=TILES)
    each = tiled["train"][0].tiles
    make_images(folder / "single", records * each, 24)
    builds = {"one tile an image": _build(folder / "single", tiles=1), f"{each} tiles an image": tiled}
    print(f"\n| decode | {' | '.join(f'{name}, tiles/s' for name in builds)} | ratio |\n|---|---|---|---|")
    goals = []
    for decode in ("fast", "exact"):
        rates: dict[str, float] = dict.fromkeys(builds, 0.0)
        for _ in range(repeats):
            for name, build in builds.items():
                rates[name] = max(rates[name], _tiles_per_second(build, decode))
        single, with_tiles = rates.values()
        print(f"| {decode} | {single:,.0f} | {with_tiles:,.0f} | {with_tiles / single:.2f} |", flush=True)
        what = f"tiles/s of a loader with tiles, `{decode}`"
        goals.append(Goal(what=what, got=with_tiles / single, expected=SLOWER, at_least=True))
    return goals


def _tiles_per_second(build: Build, decode: Any) -> float:
    start, tiles = time.perf_counter(), 0
    for batch in Loader(build, batch_size=4, max_length=LENGTH, decode=decode, epochs=1):
        tiles += len(batch.images)
    return tiles / (time.perf_counter() - start)


def bench_packing(folder: Path) -> list[Goal]:
    """Fill of sequences over samples of 1 to 7 tiles, equally many of each number that grids of at most 6 have."""
    make_images(folder / "photos", 4096, 60, sizes=SHAPES)
    build = _build(folder / "photos", tiles=TILES)
    tiles = np.bincount([sample.tiles for sample in build["train"]])
    print(f"\nsamples of {', '.join(f'{count}: {n}' for count, n in enumerate(tiles.tolist()) if n)} tiles")
    loader = Loader(build, batch_size=1, max_length=LENGTH, decode="none", epochs=1)
    tokens = sequences = 0
    for batch in loader:
        tokens += int((batch.segment_ids != 0).sum())
        sequences += 1
    share = tokens / (sequences * LENGTH)
    print(f"{sequences} sequences of {LENGTH} tokens, {share:.2%} used")
    return [Goal(what=f"sequences of {LENGTH} used, 1 to 7 tiles", got=share, expected=FULL, at_least=True, unit="%")]


def _build(data: Path, *, tiles: int) -> Build:
    tree = {
        "tokenizer": str(ROOT / "examples/tokenizer"),
        "image_tokens": IMAGE_TOKENS,
        "image": {"store": "resized", "size": SIDE, "fit": "squash", "tiles": tiles},
        "datasets": [{"name": "bench", "adapter": "llava", "root": str(data), "samples": "all"}],
    }
    blend = data / "blend.yaml"
    blend.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return shards.open(run_build(blend, out=data / "build").path)


if __name__ == "__main__":
    main()
