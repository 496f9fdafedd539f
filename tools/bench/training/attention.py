"""Multi-modal causal attention against causal attention and against the dense two-softmax form.

Forms of a comparison take turns, so that a busy machine slows all of them. What a decoder prepares once for all of its
layers (MMCA's layout, the dense form's masks) is made before the clock starts; the layout's own time is in the table.
Before they are timed, the dense form and MMCA are held against each other: outputs and gradients.
"""

# ruff: noqa: E402 - torchvision is fixed before transformers looks at it

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from trainer.compat.torchvision import declare_operators

declare_operators()

from tools.bench.training.goals import Goal
from trainer.attention.layout import AttentionLayout, build_layout
from trainer.attention.mmca import MMCA

WIDTH = 64
IMAGE = 576
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A conversation: so much text, then an image, text, an image, ...; a sequence is one or more of them.
THREE_IMAGES = (30, 90, 90, 90)
GOAL_SHAPE = "1 row of 3 images x 576 + 300 text"
# name -> tokens of an image, sequences of conversations
SHAPES: dict[str, tuple[int, list[list[tuple[int, ...]]]]] = {
    GOAL_SHAPE: (IMAGE, [[THREE_IMAGES]]),
    "4 rows of 3 images x 576 + 300 text": (IMAGE, [[THREE_IMAGES]] * 4),
    "1 packed row of 4 x (1 image x 576 + 100 text)": (IMAGE, [[(20, 80)] * 4]),
    "1 row of 32 images x 64 + 300 text": (64, [[(12, *[9] * 32)]]),
    "1 row of 2048 text": (IMAGE, [[(2048,)]]),
}
M_MMAP_THRESHOLD = -3  # glibc's malloc.h
GPU_QUEUE = 10
"""Runs of a form that a GPU is given at once, as layers come one after another."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Where = tuple[torch.Tensor, torch.Tensor]
"""is_image and segment_ids, [B, T]"""
Masks = list[tuple[torch.Tensor, torch.Tensor]]


class Form(NamedTuple):
    """A way to attend. Once a forward pass: prepare(is_image, segment_ids). Once a layer: attend(q, k, v, prepared)."""

    prepare: Callable[[torch.Tensor, torch.Tensor], Any]
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]


def bench_speed(device: str, types: Sequence[str], threads: list[int], repeats: int) -> list[Goal]:
    expected = 0.8 if device == "cpu" else 0.7
    print("\n9 heads of 64; milliseconds forward / forward and backward; ratio of the latter\n")
    print("| shape | type | threads | causal | MMCA | ratio | layout, once a forward |\n|---|---|---|---|---|---|---|")
    goals = []
    for shape, (image_tokens, rows) in SHAPES.items():
        where = tokens(rows, image_tokens)
        layout = _layout_milliseconds(where, repeats)
        for name in types:
            inputs = _inputs(len(rows), 9, where[0].shape[1], DTYPES[name], device)
            for count in threads:
                torch.set_num_threads(count)
                forward = milliseconds(("causal", "mmca"), inputs, where, repeats, backward=False)
                both = milliseconds(("causal", "mmca"), inputs, where, repeats, backward=True)
                causal, ours = (f"{one:.2f} / {other:.2f}" for one, other in zip(forward, both, strict=True))
                ratio = both[1] / both[0]
                cells = f"{shape} | {name} | {count} | {causal} | {ours} | {ratio:.2f} | {layout:.2f}"
                print(f"| {cells} |", flush=True)
                if shape == GOAL_SHAPE:
                    what = f"time of MMCA / causal, {shape}, {name}, threads {count}"
                    goals.append(Goal(what=what, got=ratio, expected=expected))
    return goals


def bench_dense(device: str, types: Sequence[str], threads: list[int], repeats: int) -> list[Goal]:
    where = tokens([[THREE_IMAGES]], IMAGE)
    check_equal(device, where)
    print(f"\n8 heads of 64, 1 row of {where[0].shape[1]}, forward and backward\n")
    print("| type | threads | dense masks | MMCA | times faster |\n|---|---|---|---|---|")
    goals = []
    for name in types:
        inputs = _inputs(1, 8, where[0].shape[1], DTYPES[name], device)
        for count in threads:
            torch.set_num_threads(count)
            dense, ours = milliseconds(("dense", "mmca"), inputs, where, repeats, backward=True)
            print(f"| {name} | {count} | {dense:,.1f} ms | {ours:.2f} ms | {dense / ours:.1f} |", flush=True)
            what = f"dense masks / MMCA, time, {name}, threads {count}"
            goals.append(Goal(what=what, got=dense / ours, expected=8, at_least=True))
    print("\n| type | dense masks, peak | MMCA, peak | share |\n|---|---|---|---|")
    for name in types:
        dense_peak, peak = (measured_peak(form, name, 3, device) for form in ("dense", "mmca"))
        share = peak / dense_peak
        print(f"| {name} | {_mib(dense_peak)} | {_mib(peak)} | {share:.2f} |", flush=True)
        goals.append(Goal(what=f"memory of MMCA / dense masks, {name}", got=share, expected=0.2))
    return goals


def bench_memory(device: str, types: Sequence[str]) -> list[Goal]:
    print("\n8 heads of 64, 1 row, forward and backward, images of 576 with 100 text tokens each\n")
    print("| type | tokens | causal, peak | MMCA, peak | MMCA against its first |\n|---|---|---|---|---|")
    goals = []
    for name in types:
        first = 0
        for images in (3, 12):
            causal_peak, peak = (measured_peak(form, name, images, device) for form in ("causal", "mmca"))
            first = first or peak
            cells = f"{name} | {images * (IMAGE + 100)} | {_mib(causal_peak)} | {_mib(peak)} | {peak / first:.2f}"
            print(f"| {cells} |", flush=True)
        goals.append(Goal(what=f"memory of MMCA, 8112 tokens / 2028 tokens, {name}", got=peak / first, expected=4.5))
    return goals


def tokens(rows: list[list[tuple[int, ...]]], image_tokens: int) -> Where:
    """Sequences of conversations, as SHAPES has them."""
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


def milliseconds(forms: Sequence[str], inputs: Tensors, where: Where, repeats: int, *, backward: bool) -> list[float]:
    """The median of each form, once a layer."""
    device = inputs[0].device
    queue = 1 if device.type == "cpu" else GPU_QUEUE
    prepared = {form: _to(FORMS[form].prepare(*where), device) for form in forms}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(repeats + 1):
        for form, times in seconds.items():
            _wait(device)
            start = time.perf_counter()
            for _ in range(queue):
                run(form, inputs, prepared[form], backward=backward)
            _wait(device)
            if number:  # the first is to warm up
                times.append((time.perf_counter() - start) / queue)
    return [statistics.median(times) * 1000 for times in seconds.values()]


def _layout_milliseconds(where: Where, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        build_layout(*where)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]) * 1000


def run(form: str, inputs: Tensors, prepared: Any, *, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        out = FORMS[form].attend(*inputs, prepared)
    if backward:
        torch.autograd.grad(out, inputs, out.detach())


def check_equal(device: str, where: Where) -> None:
    """Raises AssertionError unless the dense form and MMCA give the same output and gradients, in fp32."""
    results = []
    for form in ("dense", "mmca"):
        inputs = _inputs(1, 8, where[0].shape[1], torch.float32, device)
        out = FORMS[form].attend(*inputs, _to(FORMS[form].prepare(*where), inputs[0].device))
        results.append([out.detach(), *torch.autograd.grad(out, inputs, out.detach())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prepared: None) -> torch.Tensor:
    """As transformers' sdpa calls it; the samples of a packed sequence are not kept apart, which would need a mask."""
    out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.transpose(1, 2).contiguous()


def mmca(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prepared: AttentionLayout) -> torch.Tensor:
    return MMCA.attend(torch.nn.Module(), query, key, value, None, attention_layout=prepared)[0]


def dense_masks(rows: torch.Tensor, segment_ids: torch.Tensor) -> Masks:
    """Of one row with one sample, for both softmaxes: what is added to the scores, and which queries see anything."""
    (is_image,) = rows
    earlier = torch.ones(len(is_image), len(is_image), dtype=torch.bool).tril()
    itself = torch.eye(len(is_image), dtype=torch.bool)
    over_text = torch.where(is_image[:, None], itself, earlier & ~is_image)  # an image row sees itself
    over_images = earlier & is_image & ~is_image[:, None]
    lowest = torch.finfo(torch.float32).min
    return [
        (torch.zeros(seen.shape).masked_fill(~seen, lowest), seen.any(1, keepdim=True))
        for seen in (over_text, over_images)
    ]


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prepared: Masks) -> torch.Tensor:
    """As DeepSpeed-VisualChat's modelling code: both softmaxes of all scores, each under an additive mask in fp32."""
    scores = query @ key.transpose(2, 3) * WIDTH**-0.5
    weights = torch.zeros_like(scores)
    for mask, sees in prepared:
        weights = weights + ((scores + mask).softmax(-1, dtype=torch.float32) * sees).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


FORMS = {
    "causal": Form(lambda is_image, segment_ids: None, causal),
    "mmca": Form(build_layout, mmca),
    "dense": Form(dense_masks, dense),
}


def measured_peak(form: str, dtype: str, images: int, device: str) -> int:
    """peak_bytes; on the CPU in a fresh process, since freed memory may stay with a process."""
    if device != "cpu":
        return peak_bytes(form, dtype, images, device)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(peak_bytes, form, dtype, images, device).result()


def peak_bytes(form: str, dtype: str, images: int, device: str) -> int:
    """What memory grows by during one forward and backward; inputs and what was prepared do not count."""
    torch.set_num_threads(2)
    if device == "cpu":
        # What is freed goes back at once: else freed memory that is used again would not be seen to grow.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    where = tokens([[(50, *[100] * (images - 1), 50)]], IMAGE)
    inputs = _inputs(1, 8, where[0].shape[1], DTYPES[dtype], device)
    prepared = _to(FORMS[form].prepare(*where), inputs[0].device)
    run(form, inputs, prepared, backward=True)  # loads kernels, which keep some tables
    before = _start_peak(device)
    run(form, inputs, prepared, backward=True)
    return _peak(device) - before


def _start_peak(device: str) -> int:
    """Forget earlier peaks; returns what is in use."""
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status_bytes("VmRSS")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str) -> int:
    return _status_bytes("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert match
    return int(match[1]) * 1024


def _inputs(batch: int, heads: int, length: int, dtype: torch.dtype, device: str) -> Tensors:
    """Query, key and value as a decoder makes them: [B, H, T, D], in memory B, T, H, D."""
    torch.manual_seed(0)
    shape = (batch, length, heads, WIDTH)
    query, key, value = (torch.randn(shape, device=device).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    return query, key, value


def _to(prepared: Any, device: torch.device) -> Any:
    if isinstance(prepared, list):
        return [tuple(tensor.to(device) for tensor in tensors) for tensors in prepared]
    return prepared.to(device) if prepared is not None else None


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
