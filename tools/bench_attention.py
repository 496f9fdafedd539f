"""Measure multi-modal causal attention against causal attention and against the dense two-softmax form.

    python tools/bench_attention.py [--device cpu] [--threads 1,2] [--repeats 5] [--only speed,dense,memory]

speed: forward and backward of trainer.mmca against causal scaled_dot_product_attention of one shape. dense: against
explicit additive masks, as DeepSpeed-VisualChat's modelling code has them. memory: peak memory as rows grow; on the CPU
it is what the peak of the resident set grows by, in a process of its own. The two forms of a comparison take turns.
Prints Markdown for docs/benchmarks.md.
"""

# ruff: noqa: E402 - torchvision is mended before transformers looks at it

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from trainer.torchvision_operators import declare_operators

declare_operators()

from trainer.mmca import mmca_attention
from trainer.mmca_layout import MmcaLayout, build_layout

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 64
IMAGE = 576
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A conversation: so much text, then an image, text, an image, ...; a row is one or more of them.
THREE_IMAGES = (30, 90, 90, 90)
# name -> positions of an image, rows of conversations
SHAPES: dict[str, tuple[int, list[list[tuple[int, ...]]]]] = {
    "1 row of 3 images x 576 + 300 text": (IMAGE, [[THREE_IMAGES]]),
    "4 rows of 3 images x 576 + 300 text": (IMAGE, [[THREE_IMAGES]] * 4),
    "1 packed row of 4 x (1 image x 576 + 100 text)": (IMAGE, [[(20, 80)] * 4]),
    "1 row of 32 images x 64 + 300 text": (64, [[(12, *[9] * 32)]]),
    "1 row of 2048 text": (IMAGE, [[(2048,)]]),
}
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default="1,2", help="CPU threads to try, such as 1,2")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each measurement; the median counts")
    parser.add_argument("--only", default="speed,dense,memory")
    parser.add_argument("--peak", nargs=3, metavar=("FORM", "DTYPE", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        form, dtype, images = arguments.peak
        print(peak_bytes(form, DTYPES[dtype], int(images), arguments.device))
        return
    print(f"commit {_commit()}, torch {torch.__version__}, {_machine(arguments.device)}\n")
    parts = arguments.only.split(",")
    threads = [int(number) for number in arguments.threads.split(",")] if arguments.device == "cpu" else [1]
    if "speed" in parts:
        bench_speed(arguments.device, threads, arguments.repeats)
    if "dense" in parts:
        bench_dense(arguments.device, threads, arguments.repeats)
    if "memory" in parts:
        bench_memory(arguments.device)


def bench_speed(device: str, threads: list[int], repeats: int) -> None:
    print("9 heads of 64, milliseconds forward / forward and backward; wanted: at most 0.80\n")
    print("| shape | type | threads | causal | MMCA | ratio |\n|---|---|---|---|---|---|")
    for shape, (image_tokens, rows) in SHAPES.items():
        is_image, segment_ids = tokens(rows, image_tokens)
        layout = build_layout(is_image, segment_ids).to(device)
        for name, dtype in DTYPES.items():
            inputs = _inputs(len(rows), 9, is_image.shape[1], dtype, device)
            for count in threads:
                torch.set_num_threads(count)
                forward = milliseconds(("causal", "mmca"), inputs, layout, repeats, backward=False)
                both = milliseconds(("causal", "mmca"), inputs, layout, repeats, backward=True)
                causal, ours = (f"{one:.1f} / {other:.1f}" for one, other in zip(forward, both, strict=True))
                print(f"| {shape} | {name} | {count} | {causal} | {ours} | {both[1] / both[0]:.2f} |", flush=True)


def bench_dense(device: str, threads: list[int], repeats: int) -> None:
    is_image, segment_ids = tokens([[THREE_IMAGES]], IMAGE)
    print(f"\n8 heads of 64, 1 row of {is_image.shape[1]}, forward and backward\n")
    print("| type | threads | dense masks | MMCA | times faster (wanted: 8) |\n|---|---|---|---|---|")
    layout = build_layout(is_image, segment_ids).to(device)
    for name, dtype in DTYPES.items():
        inputs = _inputs(1, 8, is_image.shape[1], dtype, device)
        for count in threads:
            torch.set_num_threads(count)
            dense, ours = milliseconds(("dense", "mmca"), inputs, layout, repeats, backward=True)
            print(f"| {name} | {count} | {dense:,.0f} ms | {ours:.1f} ms | {dense / ours:.1f} |", flush=True)
    print("\n| type | dense masks, peak | MMCA, peak | share (wanted: 0.20) |\n|---|---|---|---|")
    for name in DTYPES:
        dense_peak, peak = (measured_peak(form, name, 3, device) for form in ("dense", "mmca"))
        print(
            f"| {name} | {dense_peak / 2**20:,.0f} MiB | {peak / 2**20:,.0f} MiB | {peak / dense_peak:.2f} |",
            flush=True,
        )


def bench_memory(device: str) -> None:
    print("\n8 heads of 64, 1 row, forward and backward, images of 576 with 100 text tokens each\n")
    print("| type | tokens | causal, peak | MMCA, peak | against the first (wanted: 4.5) |\n|---|---|---|---|---|")
    for name in DTYPES:
        first = None
        for images in (3, 12):
            causal_peak, peak = (measured_peak(form, name, images, device) for form in ("causal", "mmca"))
            first = first or peak
            sizes = f"{causal_peak / 2**20:,.0f} MiB | {peak / 2**20:,.0f} MiB"
            print(f"| {name} | {images * (IMAGE + 100)} | {sizes} | {peak / first:.2f} |", flush=True)


def tokens(rows: list[list[tuple[int, ...]]], image_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """is_image and segment_ids of rows of conversations."""
    is_image, segment_ids = [], []
    for row in rows:
        kinds: list[bool] = []
        numbers: list[int] = []
        for number, texts in enumerate(row, start=1):
            conversation = [False] * texts[0]
            for text in texts[1:]:
                conversation += [True] * image_tokens + [False] * text
            kinds += conversation
            numbers += [number] * len(conversation)
        is_image.append(kinds)
        segment_ids.append(numbers)
    return torch.tensor(is_image), torch.tensor(segment_ids)


def milliseconds(
    forms: tuple[str, str], inputs: Tensors, layout: MmcaLayout, repeats: int, backward: bool
) -> list[float]:
    """The median of each form; they take turns, so that a busy machine slows both."""
    device = inputs[0].device
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(repeats + 1):
        for form, found in seconds.items():
            _wait(device)
            start = time.perf_counter()
            run(form, inputs, layout, backward)
            _wait(device)
            if number:  # the first is to warm up
                found.append(time.perf_counter() - start)
    return [statistics.median(found) * 1000 for found in seconds.values()]


def run(form: str, inputs: Tensors, layout: MmcaLayout, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        out = FORMS[form](*inputs, layout)
    if backward:
        torch.autograd.grad(out, inputs, out.detach())


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: MmcaLayout) -> torch.Tensor:
    out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.transpose(1, 2).contiguous()


def mmca(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: MmcaLayout) -> torch.Tensor:
    return mmca_attention(torch.nn.Module(), query, key, value, None, mmca_layout=layout)[0]


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: MmcaLayout) -> torch.Tensor:
    """Both softmaxes of all scores, each under an additive mask [T, T] in fp32; image rows see themselves."""
    (is_image,) = tokens([[THREE_IMAGES]], IMAGE)[0].to(query.device)
    earlier = torch.ones(len(is_image), len(is_image), dtype=torch.bool, device=query.device).tril()
    itself = torch.eye(len(is_image), dtype=torch.bool, device=query.device)
    over_text = torch.where(is_image[:, None], itself, earlier & ~is_image)
    over_images = earlier & is_image & ~is_image[:, None]
    scores = query @ key.transpose(2, 3) * WIDTH**-0.5
    weights = torch.zeros_like(scores)
    for seen in (over_text, over_images):
        mask = torch.zeros(seen.shape, device=query.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        some = seen.any(1, keepdim=True)
        weights = weights + ((scores + mask).softmax(-1, dtype=torch.float32) * some).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, MmcaLayout], torch.Tensor]] = {
    "causal": causal,
    "mmca": mmca,
    "dense": dense,
}


def measured_peak(form: str, dtype: str, images: int, device: str) -> int:
    """peak_bytes in a fresh process."""
    command = [sys.executable, __file__, "--device", device, "--peak", form, dtype, str(images)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_bytes(form: str, dtype: torch.dtype, images: int, device: str) -> int:
    """What memory grows by during one forward and backward, inputs not counted, kernels loaded before."""
    torch.set_num_threads(2)
    # The dense form has its tokens built in, so three images are laid out the same way for all.
    texts = THREE_IMAGES if images == 3 else (50, *[100] * (images - 1), 50)
    is_image, segment_ids = tokens([[texts]], IMAGE)
    layout = build_layout(is_image, segment_ids).to(device)
    inputs = _inputs(1, 8, is_image.shape[1], dtype, device)
    small = build_layout(*tokens([[(8, 8)]], 16)).to(device)
    if form != "dense":
        run(form, _inputs(1, 8, 32, dtype, device), small, backward=True)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(form, inputs, layout, backward=True)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status_bytes("VmRSS")
    run(form, inputs, layout, backward=True)
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def _inputs(batch: int, heads: int, length: int, dtype: torch.dtype, device: str) -> Tensors:
    """Query, key and value as a decoder makes them: [B, H, T, D], in memory B, T, H, D."""
    torch.manual_seed(0)
    shape = (batch, length, heads, WIDTH)
    query, key, value = (torch.randn(shape, device=device).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    return query, key, value


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
