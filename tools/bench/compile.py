"""Measure the compiler against the bare parts of its work, all in one run on one machine.

    python -m tools.bench.compile [--records 6000] [--only images,workers,rebuild,text,base64] [--text-records 1000000]

Bare parts, one core: read each file, check it with Pillow, tokenize the rendered text, sha256 what is stored, write it.
The compiler does the same work, and all the rest: adapters, templates, labels, splits, indexes, manifests.
Prints Markdown for docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import yaml
from PIL import Image

from dst import ChatTokenizer, load_template, load_tokenizer
from preprocess.images.prepare import ImagePolicy
from tools.bench.data import PHOTOS, RECORDS, ROOT, machine, make_images, words

POLICIES = {
    "header": ImagePolicy(check="header"),
    "decode": ImagePolicy(check="decode"),
    "resized": ImagePolicy(store="resized"),
}
EXPECTED = {"header": 0.60, "decode": 0.80, "resized": 0.85}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=6000, help="LLaVA-like records with a 640x480 JPEG each")
    parser.add_argument("--text-records", type=int, default=1_000_000)
    parser.add_argument("--base64-bytes", type=int, default=2 * 10**9)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each image measurement; the median counts")
    parser.add_argument("--only", default="images,workers,rebuild,text,base64")
    parser.add_argument("--scratch", type=Path, default=None, help="a folder on a local disk")
    arguments = parser.parse_args()
    parts = set(arguments.only.split(","))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        print(f"{machine()}\n")
        if parts & {"images", "workers", "rebuild"}:
            make_images(folder, arguments.records)
        if "images" in parts:
            bench_images(folder, arguments.records, arguments.repeats)
        if "workers" in parts:
            bench_workers(folder, arguments.records, arguments.repeats)
        if "rebuild" in parts:
            bench_rebuild(folder, arguments.records)
        if "text" in parts:
            bench_text(folder, arguments.text_records)
        if "base64" in parts:
            bench_base64(folder, arguments.base64_bytes)


def bench_images(folder: Path, count: int, repeats: int) -> None:
    print("| image policy | bare parts, samples/s | compiler, samples/s | ratio | expected |\n|---|---|---|---|---|")
    for name, policy in POLICIES.items():
        bare, ours = [], []
        few = count if name != "resized" else max(count // 2, 200)
        for _ in range(repeats):
            bare.append(few / sum(bare_parts(folder, few, policy).values()))
            seconds = build_seconds(folder, {"image": dataclasses.asdict(policy)}, workers=1, first=few)
            ours.append(few / seconds)
        ratio = statistics.median(one / other for one, other in zip(ours, bare, strict=True))
        print(
            f"| {name} | {statistics.median(bare):,.0f} | {statistics.median(ours):,.0f} | {ratio:.0%} "
            f"| {EXPECTED[name]:.0%} |",
            flush=True,
        )
    parts = bare_parts(folder, min(count, 2000), ImagePolicy(check="header"))
    shares = ", ".join(f"{name} {seconds / min(count, 2000) * 1e6:.0f}" for name, seconds in parts.items())
    print(f"\nbare parts with a header check, microseconds a sample: {shares}\n")


def bare_parts(folder: Path, count: int, policy: ImagePolicy) -> dict[str, float]:
    """Seconds for each part alone, over the same records."""
    records = json.loads((folder / RECORDS).read_text(encoding="utf-8"))[:count]
    chat = ChatTokenizer(load_template("visualchat"), load_tokenizer(ROOT / "examples/tokenizer"))
    texts = [chat.render(_messages(record)).text for record in records]
    bare = tokenizers.Tokenizer.from_file(str(ROOT / "examples/tokenizer/tokenizer.json"))
    seconds = dict.fromkeys(("read", "check", "tokenize", "hash", "write"), 0.0)
    with tempfile.TemporaryFile(dir=folder) as out:
        for record, text in zip(records, texts, strict=True):
            start = time.perf_counter()
            with open(folder / PHOTOS / record["image"], "rb") as file:
                data = file.read()
            read = time.perf_counter()
            stored = _bare_check(data, policy)
            checked = time.perf_counter()
            ids = bare.encode(text, add_special_tokens=False).ids
            tokenized = time.perf_counter()
            tokens = np.array([ids, ids], dtype=np.int32).tobytes()
            hashlib.sha256(stored + tokens).digest()
            hashed = time.perf_counter()
            out.write(stored)
            out.write(tokens)
            for name, begin, end in (
                ("read", start, read),
                ("check", read, checked),
                ("tokenize", checked, tokenized),
                ("hash", tokenized, hashed),
                ("write", hashed, time.perf_counter()),
            ):
                seconds[name] += end - begin
        start = time.perf_counter()
        out.flush()
        os.fsync(out.fileno())
        seconds["write"] += time.perf_counter() - start
    return seconds


def _bare_check(data: bytes, policy: ImagePolicy) -> bytes:
    """What Pillow alone takes for the same check, or the same stored image."""
    with Image.open(io.BytesIO(data)) as image:
        if policy.store == "resized":
            width, height = (round(side * policy.size / min(image.size)) for side in image.size)
            left, top = (width - policy.size) // 2, (height - policy.size) // 2
            small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            out = io.BytesIO()
            small.crop((left, top, left + policy.size, top + policy.size)).save(out, "JPEG", quality=95, subsampling=0)
            return out.getvalue()
        if policy.check == "decode":
            image.load()
    return data


def build_seconds(folder: Path, settings: dict[str, object], *, workers: int, first: int | None = None) -> float:
    out = folder / "build"
    shutil.rmtree(out, ignore_errors=True)
    seconds, _, _ = run_build(folder, _blend(folder, "llava", settings, first), out, workers)
    return seconds


def bench_workers(folder: Path, count: int, repeats: int) -> None:
    """One worker against two."""
    print("| workers | samples/s, full decode | against one |\n|---|---|---|")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers in rates:
            rates[workers].append(count / build_seconds(folder, {"image": {"check": "decode"}}, workers=workers))
    one_worker = statistics.median(rates[1])
    for workers, measured in rates.items():
        print(f"| {workers} | {statistics.median(measured):,.0f} | {statistics.median(measured) / one_worker:.2f}x |")
    print("\nexpected: 2 workers at least 1.70x of one\n", flush=True)


def bench_rebuild(folder: Path, count: int) -> None:
    """The same build again, and again with another amount. Start-up takes 0.4 s of each, so use many records."""
    settings: dict[str, Any] = {"image": {"check": "decode"}}
    first = build_seconds(folder, settings, workers=2)
    again, _, report = run_build(folder, _blend(folder, "llava", settings, None), folder / "build", workers=2)
    amount = _blend(folder, "llava", settings, None, amount={"epochs": 2.0})
    other, _, last = run_build(folder, amount, folder / "build", workers=2)
    print(f"{count:,} images, 2 workers, first build {first:.1f} s\n")
    share = f"{again:.2f} s, {again / first:.2%}"
    print(f"- nothing changed ({report['built_tasks']} tasks built): {share} (expected: under 2%)")
    print(f"- another amount ({last['built_tasks']} tasks built): {other:.2f} s (expected: under 5 s)\n", flush=True)


def bench_text(folder: Path, count: int) -> None:
    """Peak memory over a million text-only records; then the same build again, and again with other weights."""
    choose = random.Random(1)
    root = folder / "text"
    root.mkdir()
    with (root / "chat.jsonl").open("w", encoding="utf-8") as file:
        for index in range(count):
            messages = [
                {"role": "user", "content": words(choose, 15)},
                {"role": "assistant", "content": words(choose, 30)},
            ]
            file.write(json.dumps({"id": f"t{index}", "messages": messages}) + "\n")
    out = folder / "text-build"
    blend = _blend(root, "chat", {"total": 1000}, None, amount={"weight": 1.0})
    first, peak, report = run_build(root, blend, out, workers=2)
    again, again_peak, second = run_build(root, blend, out, workers=2)
    other = _blend(root, "chat", {"total": 500}, None, amount={"weight": 3.0})
    weights, _, third = run_build(root, other, out, workers=2)
    print(
        f"{count:,} text-only records, {(root / 'chat.jsonl').stat().st_size / 1e6:,.0f} MB of JSON lines, 2 workers\n"
    )
    print("| | seconds | expected | peak memory of one process | expected |\n|---|---|---|---|---|")
    print(f"| first build ({report['built_tasks']} tasks) | {first:,.1f} | | {peak:,.0f} MB | under 1,000 MB |")
    share = f"{again:.2f} ({again / first:.2%} of the first)"
    print(f"| nothing changed ({second['built_tasks']} tasks built) | {share} | under 2% | {again_peak:,.0f} MB | |")
    print(f"| other weights ({third['built_tasks']} tasks built) | {weights:.2f} | under 5 s | | |\n", flush=True)
    shutil.rmtree(out)
    shutil.rmtree(root)


def bench_base64(folder: Path, size_bytes: int) -> None:
    """A MIMIC-IT image store in one JSON file of 2 GB, read through its index."""
    root = folder / "mimic"
    (root / "MIMIC-IT").mkdir(parents=True)
    choose = np.random.default_rng(2)
    noise = choose.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG", quality=90)
    text = base64.b64encode(data.getvalue()).decode()
    images = size_bytes // len(text)
    with (root / "MIMIC-IT/SD.json").open("w", encoding="ascii") as file:
        file.write("{")
        for index in range(images):
            file.write(f'{", " if index else ""}"SD_IMG_{index:06d}": "{text}"')
        file.write("}")
    instructions = {
        f"SD_INS_{index:06d}": {
            "instruction": "What changed?",
            "answer": f"Number {index}.",
            "image_ids": [f"SD_IMG_{2 * index:06d}", f"SD_IMG_{2 * index + 1:06d}"],
            "rel_ins_ids": [],
        }
        for index in range(images // 2)
    }
    (root / "MIMIC-IT/SD_instructions.json").write_text(
        json.dumps({"meta": {}, "data": instructions}), encoding="utf-8"
    )
    blend = _blend(root, "otter_mimicit_sd", {"image": {"check": "header"}}, None)
    seconds, peak, report = run_build(root, blend, folder / "mimic-build", workers=2)
    size = (root / "MIMIC-IT/SD.json").stat().st_size
    print(f"base64 JSON of {size / 1e9:.2f} GB, {images:,} images, {report['datasets']['bench']['samples']:,} samples:")
    print(f"{seconds:.1f} s, peak memory of one process {peak:,.0f} MB (expected: under 1,000 MB)\n", flush=True)
    shutil.rmtree(folder / "mimic-build")
    shutil.rmtree(root)


def run_build(root: Path, blend: Path, out: Path, workers: int) -> tuple[float, float, dict[str, Any]]:
    """Seconds of the whole command, peak memory in MB of its biggest process, and its report."""
    command = [sys.executable, "-c", _MEASURED, "build", "--blend", str(blend), "--out", str(out), "--json"]
    start = time.perf_counter()
    done = subprocess.run([*command, "--workers", str(workers)], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    report, peak = done.stdout.strip().rsplit("\n", 1)
    return seconds, float(peak), json.loads(report)


# Linux gives ru_maxrss in KiB: our own, and the biggest of our children's.
_MEASURED = """
import resource, sys
from preprocess.cli import cli
sys.argv[0] = "dsvl-prep"
cli(standalone_mode=False)
print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024 / 1e6)
"""


def _blend(
    root: Path, adapter: str, settings: dict[str, object], first: int | None, amount: dict[str, object] | None = None
) -> Path:
    dataset = {"name": "bench", "adapter": adapter, "root": str(root), **(amount or {"samples": "all"})}
    if first is not None:
        dataset["first"] = first
    tree = {"tokenizer": str(ROOT / "examples/tokenizer"), **settings, "datasets": [dataset]}
    path = root / "blend.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def _messages(record: dict[str, object]) -> list[dict[str, Any]]:
    question, answer = (turn["value"] for turn in record["conversations"])  # type: ignore[attr-defined]
    parts = [{"type": "image"}, {"type": "text", "text": question.removeprefix("<image>\n")}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]


if __name__ == "__main__":
    main()
