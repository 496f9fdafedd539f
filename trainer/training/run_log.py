"""What a run says of itself: metrics.jsonl and TensorBoard, and lines in the terminal.

The rule: rank 0 alone writes. On other ranks every method does nothing, so that a run calls them everywhere.
"""

from __future__ import annotations

import re
import resource
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from trainer.config.run import TrainConfig
from trainer.distributed.ranks import Ranks
from trainer.training.loop import Evaluation, StepResult
from trainer.training.loss_watch import LossWatch
from trainer.training.metrics import JSONL, Journal, MultipliedWeights, Window, peak_flops, read_journal, record
from trainer.training.progress import Terminal


class RunLog(AbstractContextManager["RunLog"]):
    """The log of one run, open while it trains."""

    def __init__(
        self, config: TrainConfig, out: Path, ranks: Ranks, weights: MultipliedWeights, *, step: int, steps: int
    ) -> None:
        """step: the last one that is done; what was logged after it is removed. steps: of the whole run."""
        self._config, self._out, self._ranks, self._weights = config, out, ranks, weights
        self._step, self._steps = step, steps
        self._journal: Journal | None = None
        self._terminal: Terminal | None = None
        self._watch = LossWatch()
        self._stack = ExitStack()
        self.window = Window()
        """Of the steps since the last line"""

    def __enter__(self) -> Self:
        if self._ranks.is_first:
            self._journal = Journal(self._out, tensorboard=self._config.logging.tensorboard, after_step=self._step)
            self._stack.callback(self._journal.close)
            self._terminal = self._stack.enter_context(Terminal(self._steps, done=self._step))
            if bad := self._journal.num_bad_lines:
                self.print(f"note: {self._out / JSONL}: damaged or unfinished lines that are left out: {bad}")
            logged = (entry for entry in read_journal(self._out) if entry["kind"] == "train")
            self._watch = LossWatch((entry["step"], entry["loss"]) for entry in logged)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def print(self, text: str) -> None:
        """A line in the terminal."""
        if self._terminal is not None:
            self._terminal.print(text)

    def start(self) -> None:
        """The first step begins now; what was done before does not count in its time."""
        self.window = Window()

    def add(self, result: StepResult) -> None:
        """Count a step, move the progress bar, and warn of a loss that has exploded."""
        window = self.window
        window.steps += 1
        window.loss_sum += result.loss_sum
        window.trained_tokens += result.trained_tokens
        window.positions += result.positions
        window.tokens += result.tokens
        window.images += result.images
        window.records += result.records
        window.wait_seconds += result.wait_seconds
        window.grad_norm = result.grad_norm
        window.flops += self._weights.flops(
            positions=result.tokens, images=result.images, trained_tokens=result.trained_tokens
        )
        if self._terminal is not None:
            self._terminal.step(result.step)
            if (warning := self._watch.warning(result.step, result.loss)) is not None:
                self._terminal.print(f"warning: {warning}")

    def write(self, step: int, *, epoch: float, learning_rates: dict[str, float]) -> None:
        """Write a line of the steps since the last one, if there are any, and begin the next."""
        window, self.window = self.window, Window()
        if self._journal is None or self._terminal is None or not window.steps:
            return
        device = self._ranks.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name, self._config.precision)
        entry = record(
            window,
            step=step,
            epoch=epoch,
            lr=learning_rates,
            peak=peak * self._ranks.world_size if peak else None,
            memory_bytes=_memory_bytes(device),
        )
        self._journal.write(entry)
        self._terminal.show(entry)

    def write_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Write the held-out loss after a step."""
        if self._journal is not None:
            self._journal.write_evaluation(step, evaluation.loss, evaluation.datasets)
        by_dataset = ", ".join(f"{name} {loss:.4f}" for name, loss in evaluation.datasets.items())
        self.print(f"step {step}: held-out loss {evaluation.loss:.4f} ({by_dataset})")

    def has_evaluation(self, step: int) -> bool:
        """Whether the held-out loss after this step is written; False on other ranks than the first."""
        return self._journal is not None and any(
            entry["kind"] == "eval" and entry["step"] == step for entry in read_journal(self._out)
        )


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage gives the peak of the program that started this one, if that is higher
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
