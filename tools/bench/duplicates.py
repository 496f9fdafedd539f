"""Measure the search for near-duplicate images: what it finds, and what it costs.

    python -m tools.bench.duplicates found --photos FOLDER
    python -m tools.bench.duplicates search [--hashes 10000000] [--threads 2]
    python -m tools.bench.duplicates build [--records 6000] [--scratch FOLDER]

found: each photo below FOLDER is changed in several ways, and each change is compared with its original; different
photos are compared with each other. Look at the pairs it prints: some collections hold a photo twice.
search: random hashes, a tenth of them in groups of 100 that share half of their bits, and copies of one in a hundred
with up to 31 bits changed, all of which must be found; of 50 hashes, all near ones are also found by comparing all.
build: the whole command with and without each switch, on photos of 320x240 to 1024x768 pixels.

Prints Markdown for docs/duplicates.md.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps

from preprocess.dedupe.near_search import near_components, popcount
from preprocess.dedupe.perceptual_hash import perceptual_hash
from tools.bench.compile import build_seconds
from tools.bench.data import MANY_SIZES, machine, make_images

THRESHOLDS = (0, 15, 23, 31, 40, 60)
SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["found", "search", "build"])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--hashes", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--records", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    if arguments.part == "found":
        if arguments.photos is None:
            parser.error("found needs --photos")
        bench_found(arguments.photos)
    elif arguments.part == "search":
        bench_search(arguments.hashes, arguments.threads)
    else:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            bench_build(Path(scratch), arguments.records, arguments.repeats)


def bench_found(folder: Path) -> None:
    """The share of each kind of change within each distance, and the pairs of different photos within it."""
    photos = {path: image for path in sorted(folder.rglob("*")) if (image := _photo(path)) is not None}
    hashes = np.array([perceptual_hash(image.convert("L")).words for image in photos.values()], dtype=np.uint64)
    print(f"{len(photos)} photos\n")
    print("| change | median | largest |" + "".join(f" ≤ {limit} |" for limit in THRESHOLDS))
    print("|---|---|---|" + "---|" * len(THRESHOLDS))
    for name, change in CHANGES.items():
        changed = np.array(
            [perceptual_hash(change(image).convert("L")).words for image in photos.values()], dtype=np.uint64
        )
        distances = popcount(hashes ^ changed).sum(axis=1, dtype=np.int64)
        shares = "".join(f" {(distances <= limit).mean():.1%} |" for limit in THRESHOLDS)
        print(f"| {name} | {np.median(distances):.0f} | {distances.max()} |{shares}")
    left, right = np.triu_indices(len(hashes), 1)
    distances = popcount(hashes[left] ^ hashes[right]).sum(axis=1, dtype=np.int64)
    pairs = "".join(f" {(distances <= limit).sum()} of {len(distances):,} |" for limit in THRESHOLDS)
    print(f"| different photos | {np.median(distances):.0f} | {distances.max()} |{pairs}\n")
    names = [path.relative_to(folder).as_posix() for path in photos]
    for index in np.flatnonzero(distances <= max(THRESHOLDS)):
        print(f"- {distances[index]}: {names[left[index]]} and {names[right[index]]}")


def _photo(path: Path) -> Image.Image | None:
    """An image with detail, of at least 128 pixels a side."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        return None
    with Image.open(path) as image:
        found = ImageOps.exif_transpose(image).convert("RGB")
    return found if min(found.size) >= 2 * SIDE and not perceptual_hash(found.convert("L")).flat else None


def _encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    """Without `share` of each side, half of it at each border."""
    across, down = image.width * share / 2, image.height * share / 2
    return image.crop((round(across), round(down), round(image.width - across), round(image.height - down)))


def _captioned(image: Image.Image) -> Image.Image:
    """White text on a black band over the lowest tenth."""
    image = image.copy()
    height = image.height // 10
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, image.height - height, image.width, image.height), fill="black")
    draw.text((4, image.height - height), "A caption that somebody wrote", fill="white", font_size=max(8, height * 0.7))
    return image


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 60": lambda image: _encoded(image, 60),
    "JPEG quality 20": lambda image: _encoded(image, 20),
    "half the size": lambda image: _resized(image, 0.5),
    "half the size, JPEG quality 60": lambda image: _encoded(_resized(image, 0.5), 60),
    "twice the size": lambda image: _resized(image, 2),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "brighter by 20%": lambda image: image.point(lambda value: min(255, round(value * 1.2))),
    "cropped by 2%": lambda image: _cropped(image, 0.02),
    "cropped by 5%": lambda image: _cropped(image, 0.05),
    "captioned": _captioned,
    "mirrored": ImageOps.mirror,
}


def bench_search(count: int, threads: int) -> None:
    """Memory is that of the whole process, the hashes included."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (count, 4), dtype=np.uint64)
    group = 100
    alike = hashes[count // 2 : count // 2 + count // 10 // group * group].reshape(-1, group, 4)
    alike[:, :, :2] = alike[:, :1, :2]
    copies = count // 100
    hashes[-copies:] = hashes[:copies]
    for _ in range(31):
        bits = random.integers(0, 256, copies)
        hashes[np.arange(count - copies, count), bits // 64] ^= np.uint64(1) << (bits % 64).astype(np.uint64)
    start, start_cpu = time.perf_counter(), time.process_time()
    label = near_components(hashes, 31, threads=threads)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    missed = int((label[-copies:] != label[:copies]).sum())
    sample = np.concatenate([random.integers(0, count, 40), random.integers(0, copies, 10)])
    wrong = sum(
        not np.array_equal(_around(hashes, row), np.flatnonzero(label == label[row])) for row in sample.tolist()
    )
    print(
        "| hashes | threads | seconds | CPU seconds | peak memory, GB | copies missed | wrong by comparing with all |"
    )
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {count:,} | {threads} | {seconds:,.0f} | {cpu_seconds:,.0f} | {peak:.1f} | {missed} of {copies:,} ", end=""
    )
    print(f"| {wrong} of {len(sample)} |")


def _around(hashes: npt.NDArray[np.uint64], row: int) -> npt.NDArray[np.int64]:
    """The component of a row, by comparing it and all that it finds with every hash."""
    known, waiting = {row}, [row]
    while waiting:
        bits = hashes ^ hashes[waiting.pop()]
        near = np.flatnonzero(popcount(bits).sum(axis=1, dtype=np.int64) <= 31).tolist()
        waiting += set(near) - known
        known |= set(near)
    return np.array(sorted(known))


def bench_build(folder: Path, count: int, repeats: int) -> None:
    make_images(folder, count, sizes=MANY_SIZES)
    switches: Mapping[str, Mapping[str, object]] = {
        "none": {},
        "`split.eval: 0.1`": {"split": {"eval": 0.1}},
        "`dedupe: exact`": {"dedupe": "exact"},
        "`dedupe: near`": {"dedupe": "near"},
    }
    print("| switch | seconds | CPU seconds | against none | CPU against none |\n|---|---|---|---|---|")
    seconds: dict[str, list[float]] = {name: [] for name in switches}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in switches}
    for _ in range(repeats):
        for name, keys in switches.items():
            before = _cpu_of_children()
            seconds[name].append(build_seconds(folder, {"image": {"check": "decode"}, **keys}, workers=2))
            cpu_seconds[name].append(_cpu_of_children() - before)
    for name in switches:
        wall, cpu = (
            statistics.median(one / other for one, other in zip(runs[name], runs["none"], strict=True))
            for runs in (seconds, cpu_seconds)
        )
        print(
            f"| {name} | {statistics.median(seconds[name]):.1f} | {statistics.median(cpu_seconds[name]):.1f} "
            f"| {wall:.2f} | {cpu:.2f} |"
        )


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
