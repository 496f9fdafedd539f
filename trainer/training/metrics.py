"""What a run logs while it trains: metrics.jsonl and TensorBoard files. trainer.training.progress shows the terminal.

Rules: numbers are over all ranks. A record covers the steps since the record before it: its loss is the mean over their
trained tokens, its rates are per second of that time. Every step is logged once: where a run resumes from an earlier
step, the records of later steps are removed.

MFU (model FLOPs utilization) counts multiplications of weights with activations, two operations each: once forward,
once backward for activations and once backward for trained weights. The operations of attention itself, and those that
gradient checkpointing repeats, are not counted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from shards.files import disk_named, replace_file

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

JSONL = "metrics.jsonl"
TENSORBOARD = "tensorboard"

PEAK_FLOPS: Mapping[str, float] = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A30": 165e12,
    "A40": 150e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
"""Dense half-precision operations per second, from data sheets; the first name found in a device's name counts"""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Half-precision peak of a device; None for fp32 and for devices not in the table."""
    if precision == "fp32":
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipliedWeights:
    """Number of weights that each position of a component is multiplied with; lookup tables do not count."""

    encoder: int
    encoder_trained: int
    encoder_tokens: int
    """Positions of one image in the encoder"""
    projector: int
    projector_trained: int
    decoder: int
    """Without the token table and the output layer"""
    decoder_trained: int
    head: int
    """The output layer, which is applied at trained positions only"""
    head_trained: int

    def flops(self, *, positions: int, images: int, trained_tokens: int) -> float:
        """Operations of a step. positions: of the decoder, without padding.

        Gradients pass through the encoder only if it is trained; they always pass through what follows it.
        """
        encoder = 2 * self.encoder + (2 * self.encoder if self.encoder_trained else 0) + 2 * self.encoder_trained
        projector = 4 * self.projector + 2 * self.projector_trained
        decoder = 4 * self.decoder + 2 * self.decoder_trained
        return float(
            images * self.encoder_tokens * (encoder + projector)
            + positions * decoder
            + trained_tokens * (4 * self.head + 2 * self.head_trained)
        )


@dataclass(slots=True)
class Window:
    """Steps since the last record."""

    loss_sum: float = 0.0
    trained_tokens: int = 0
    positions: int = 0
    tokens: int = 0
    images: int = 0
    records: int = 0
    """Samples, each branch counted as one"""
    steps: int = 0
    wait_seconds: float = 0.0
    grad_norm: float = 0.0
    flops: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Time since the window began, without pauses."""
        return max(time.perf_counter() - self.start, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside does not count as training: an evaluation, a checkpoint."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.start += time.perf_counter() - before


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of metrics.jsonl."""

    step: int
    epoch: float
    """Epochs done, counted in whole packing windows: up to the last window all of whose sequences are trained on"""
    loss: float
    lr: Mapping[str, float]
    """By parameter group"""
    grad_norm: float | None
    """Of the last step, before clipping; None if fp16 skipped it"""
    tokens_per_second: float
    """Positions that are not padding; an image counts all of its positions"""
    trained_tokens_per_second: float
    images_per_second: float
    """Squares that the encoder sees: of an image with tiles each of them"""
    records_per_second: float
    """Samples, each branch counted as one"""
    padding_share: float
    data_wait_share: float
    """Share of the time that rank 0 waited for batches"""
    seconds_per_step: float
    memory_bytes: int
    """Peak memory of rank 0's device, or of its process on a CPU"""
    mfu: float | None
    """Model FLOPs over the devices' peak; None where the peak is unknown"""


def record(
    window: Window,
    *,
    step: int,
    epoch: float,
    lr: Mapping[str, float],
    peak: float | None,
    memory_bytes: int,
) -> Record:
    """The record of a window. peak: operations per second of all ranks' devices together."""
    seconds = window.seconds()
    return Record(
        step=step,
        epoch=epoch,
        loss=window.loss_sum / max(window.trained_tokens, 1),
        lr=dict(lr),
        grad_norm=window.grad_norm if math.isfinite(window.grad_norm) else None,
        tokens_per_second=window.tokens / seconds,
        trained_tokens_per_second=window.trained_tokens / seconds,
        images_per_second=window.images / seconds,
        records_per_second=window.records / seconds,
        padding_share=1 - window.tokens / max(window.positions, 1),
        data_wait_share=window.wait_seconds / seconds,
        seconds_per_step=seconds / max(window.steps, 1),
        memory_bytes=memory_bytes,
        mfu=window.flops / seconds / peak if peak else None,
    )


class Journal:
    """Writes metrics.jsonl and TensorBoard files in a folder; rank 0 alone makes one."""

    def __init__(self, folder: Path, *, tensorboard: bool, after_step: int) -> None:
        """after_step: the step that the run resumes from; records of later steps are removed."""
        self._path = folder / JSONL
        self.num_bad_lines = _remove_later(self._path, after_step)
        """Damaged, or cut off by a crash; they are left out from now on"""
        self._file = self._path.open("a", encoding="utf-8")
        self._board: SummaryWriter | None = None
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=after_step + 1)

    def write(self, entry: Record) -> None:
        values = asdict(entry)
        self._line({"kind": "train", **values})
        for name, value in _flat(values):
            if name != "step" and value is not None:
                self._scalar(f"train/{name}", value, entry.step)

    def write_evaluation(self, step: int, loss: float, datasets: Mapping[str, float]) -> None:
        self._line({"kind": "eval", "step": step, "loss": loss, "datasets": dict(datasets)})
        self._scalar("eval/loss", loss, step)
        for name, value in datasets.items():
            self._scalar(f"eval/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _line(self, values: Mapping[str, Any]) -> None:
        with disk_named(self._path.parent):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._board is not None:
            self._board.add_scalar(name, value, step)


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl that have a step and a loss; none if there is no such file.

    A line without them is damaged: a crash cut it off, or a bit of it has flipped.
    """
    return [entry for entry in journal_lines(folder) if entry is not None and _is_whole(entry)]


def journal_lines(folder: Path) -> Iterator[dict[str, Any] | None]:
    """The entries of metrics.jsonl one by one; None for a line that is none, such as one that a crash cut off."""
    try:
        with (folder / JSONL).open("rb") as file:
            for line in file:
                entry = _parsed(line)
                yield entry if isinstance(entry, dict) else None
    except FileNotFoundError:
        return


def _parsed(line: bytes) -> Any:
    """The JSON value of a line, None if there is none. NaN and Infinity, which orjson refuses, are rare."""
    for loads in (orjson.loads, json.loads):
        try:
            return loads(line)
        except (ValueError, RecursionError):
            continue
    return None


def _is_whole(entry: Mapping[str, Any]) -> bool:
    has_step = entry.get("kind") in ("train", "eval") and type(entry.get("step")) is int
    return has_step and type(entry.get("loss")) in (int, float)


def _remove_later(path: Path, after_step: int) -> int:
    """Keep the entries of steps up to `after_step`. Returns the number of lines that are none, which go too."""
    num_lines = sum(1 for _ in journal_lines(path.parent))
    entries = read_journal(path.parent)
    kept = [entry for entry in entries if entry["step"] <= after_step]
    if path.exists():
        replace_file(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
    return num_lines - len(entries)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            leaves += _flat(value, f"{prefix}{name}/")
        else:
            leaves.append((prefix + name, value))
    return leaves
