"""One rank of a training run: from the config to the last checkpoint.

Order: config and build are checked, then the processes meet, the model is built, a checkpoint's weights go into it,
DeepSpeed takes it, the optimizer's state follows, and the loop runs; every part has its own module.
"""

from __future__ import annotations

import math
import re
import resource
import signal
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import yaml
from rich.console import Console

from dst.errors import ConfigError
from shards import Build, ShardError
from shards.files import replace_file
from shards.loader import Loader
from trainer.checkpoint import reader as checkpoints
from trainer.checkpoint import writer
from trainer.checkpoint.frozen_fingerprint import frozen_elements
from trainer.checkpoint.init_from import begun_with
from trainer.checkpoint.reader import Checkpoint, Progress
from trainer.compat.deepspeed import loss_scale
from trainer.config.run import TrainConfig, accumulation, row_length, to_tree
from trainer.distributed.deepspeed_engine import check_device, initialize, make_optimizer, process_group
from trainer.distributed.launch import STOP
from trainer.distributed.ranks import Ranks
from trainer.distributed.run_lock import alone_in
from trainer.distributed.stop_signal import StopFlag, Stopped
from trainer.model.param_groups import print_parameters
from trainer.training.assemble import assemble
from trainer.training.loop import Evaluation, StepResult, evaluate, train
from trainer.training.metrics import Journal, Window, peak_flops, read_journal, record
from trainer.training.progress import Terminal

CONFIG = "config.yaml"
"""The resolved config, in the run's folder."""


def run_training(config: TrainConfig, build: Build) -> None:
    """Train, or go on, until the schedule ends or a signal asks to stop; then save.

    Raises ConfigError, ShardError or TrainError, the same on all ranks.
    """
    with process_group() as ranks:
        problems = check_device(config)
        if problems:
            raise ConfigError(problems)
        out = Path(config.out)
        with alone_in(out, ranks):
            resume, tree = config.checkpoints.resume, to_tree(config)
            found = checkpoints.find_together(out, resume, tree, build.manifest.hash, ranks)
            _Run(config, build, ranks, out, found).train()


@dataclass(slots=True)
class _Saved:
    """The step that the newest checkpoint on disk is of, and where."""

    step: int
    folder: Path | None


class _Run:
    def __init__(self, config: TrainConfig, build: Build, ranks: Ranks, out: Path, found: Checkpoint | None) -> None:
        self.config, self.build, self.ranks, self.out = config, build, ranks, out
        self.tree = to_tree(config)
        self.micro_batches = accumulation(config, ranks.world_size)
        self.loader = self._loader("train", config.batch.micro_batch_size)
        self.steps = self._steps()
        self.step = 0
        self.changes = found.changes(self.tree) if found else []
        if found is not None:
            self.step = found.step
            try:
                self.loader.load_state_dict(found.progress.loader)
            except ShardError as error:
                raise ConfigError([f"batch: {error}"]) from None
        is_own = found is not None and found.folder.resolve() == checkpoints.folder_of(out, found.step).resolve()
        self.saved = _Saved(self.step, found.folder if found and is_own else None)  # another run's is not saved here
        made = assemble(config, build.manifest.facts())
        self.work = made.work
        if ranks.is_first:
            self._write_config()
            print_parameters(made.rows, Console(stderr=True))
        self.about = {
            "manifest": build.manifest.hash,
            "config": self.tree,
            "frozen": frozen_elements(made.model),
            "init_from": found.content.get("init_from") if found else begun_with(config.model.init_from),
        }
        if found is not None:
            checkpoints.load_weights(made.model, found)
        self.engine = initialize(made.model, make_optimizer(config, made.groups), config, ranks.world_size)
        if found is not None:
            checkpoints.load_optimizer(self.engine, found, ranks=ranks)
        self.progress = Progress(step=self.step, loader=self.loader.state_dict(), loss_scale=loss_scale(self.engine))

    def train(self) -> None:
        with ExitStack() as stack:
            journal, terminal = self._tellers(stack)
            if self.step >= self.steps:
                self._say(terminal, f"all {self.steps} steps are done; raise schedule.steps or epochs to go on")
            elif self.step:
                changed = f"; changed since then: {', '.join(self.changes)}" if self.changes else ""
                self._say(terminal, f"going on after step {self.step} of {self.steps}{changed}")
            stop_file = self.out / STOP
            stop = StopFlag(lambda: self.ranks.is_first and stop_file.exists())
            stack.enter_context(stop.on_signals(signal.SIGTERM, signal.SIGINT))
            try:
                self._evaluate_if_missed(journal, terminal, stop)
                self._make_steps(journal, terminal, stop)
            except Stopped:
                pass  # what was not measured is when the run goes on
            if self.step:
                self._save()
            if self.step < self.steps:
                again = "" if self.config.checkpoints.resume == "auto" else " with checkpoints.resume=auto"
                self._say(terminal, f"stopped after step {self.step}; the same command{again} goes on from there")
            if self.ranks.is_first:
                stop_file.unlink(missing_ok=True)

    def _make_steps(self, journal: Journal | None, terminal: Terminal | None, stop: StopFlag) -> None:
        """Raises Stopped if the run is to end in an evaluation; else it ends after a step."""
        window = Window()
        with closing(self._results(stop)) as results:
            for result in results:
                self.step = result.step
                self.progress = Progress(step=result.step, loader=result.loader, loss_scale=loss_scale(self.engine))
                self._add(window, result)
                if terminal:
                    terminal.step(result.step)
                if result.step % self.config.logging.every == 0 or result.step == self.steps or result.stopping:
                    self._tell(journal, terminal, window)
                    window = Window()
                try:
                    with window.paused():
                        if self._evaluation_is_due() and not result.stopping:
                            self._evaluate(journal, terminal, stop)
                        self._save_if_due()
                except Stopped:
                    if window.steps:
                        self._tell(journal, terminal, window)
                    raise

    def _results(self, stop: StopFlag) -> Generator[StepResult, None, None]:
        return train(
            self.engine,
            self.loader,
            first_step=self.step + 1,
            steps=self.steps,
            micro_batches=self.micro_batches,
            schedule=self.config.schedule,
            seed=self.config.seed,
            ranks=self.ranks,
            stop=stop,
        )

    def _loader(self, split: str, micro_batch_size: int) -> Loader:
        batch = self.config.batch
        ahead = self.micro_batches if split == "train" else 2
        return Loader(
            self.build,
            split=split,
            batch_size=micro_batch_size * self.ranks.world_size,
            max_length=row_length(self.config, self.build.manifest),
            max_images=batch.max_images,
            packed=batch.packed,
            seed=self.config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            workers=batch.workers,
            # a step's micro-batches are fetched at once, so as many are made ahead
            prefetch=max(2, math.ceil(ahead / max(batch.workers, 1)) + 1),
            shuffle=batch.shuffle if split == "train" else None,
            decode=batch.decode,
        )

    def _steps(self) -> int:
        schedule = self.config.schedule
        if schedule.steps is not None:
            return schedule.steps
        return math.ceil(self.loader.count_rows(schedule.epochs or 1) / self.config.batch.global_batch_size)

    def _add(self, window: Window, result: StepResult) -> None:
        window.steps += 1
        window.loss_sum += result.loss_sum
        window.trained_tokens += result.trained_tokens
        window.positions += result.positions
        window.tokens += result.tokens
        window.images += result.images
        window.wait_seconds += result.wait_seconds
        window.grad_norm = result.grad_norm
        window.flops += self.work.flops(
            positions=result.tokens, images=result.images, trained_tokens=result.trained_tokens
        )

    def _tellers(self, stack: ExitStack) -> tuple[Journal | None, Terminal | None]:
        if not self.ranks.is_first:
            return None, None
        journal = Journal(self.out, tensorboard=self.config.logging.tensorboard, after_step=self.step)
        stack.callback(journal.close)
        return journal, stack.enter_context(Terminal(self.steps, done=self.step))

    def _tell(self, journal: Journal | None, terminal: Terminal | None, window: Window) -> None:
        if journal is None or terminal is None:
            return
        device = self.ranks.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name, self.config.precision)
        entry = record(
            window,
            step=self.step,
            epoch=self.loader.epochs_before(self.progress.loader["position"]),
            lr={group["name"]: group["lr"] for group in self.engine.basic_optimizer.param_groups},
            peak=peak * self.ranks.world_size if peak else None,
            memory_bytes=_memory_bytes(device),
        )
        journal.write(entry)
        terminal.show(entry)

    def _evaluation_is_due(self) -> bool:
        every = self.config.evaluation.every
        return bool(every) and (self.step % every == 0 or self.step == self.steps)

    def _evaluate_if_missed(self, journal: Journal | None, terminal: Terminal | None, stop: StopFlag) -> None:
        """A run that was asked to stop does not take the time for the evaluation of its last step."""
        if not self.step or not self._evaluation_is_due():
            return
        made = journal is not None and any(
            entry["kind"] == "eval" and entry["step"] == self.step for entry in read_journal(self.out)
        )
        if not self.ranks.gather(made)[0]:
            self._evaluate(journal, terminal, stop)

    def _evaluate(self, journal: Journal | None, terminal: Terminal | None, stop: StopFlag) -> None:
        """Measure and tell; the best so far is saved."""
        found = self._held_out_loss(stop)
        if journal is not None:
            journal.write_evaluation(self.step, found.loss, found.datasets)
        parts = ", ".join(f"{name} {loss:.4f}" for name, loss in found.datasets.items())
        self._say(terminal, f"step {self.step}: held-out loss {found.loss:.4f} ({parts})")
        before = self.ranks.gather(checkpoints.best(self.out))[0]  # network file systems show ranks what is past
        again = before is not None and before[0] == checkpoints.folder_of(self.out, self.step)
        if before is None or found.loss < before[1] or again:  # a run that went back makes that checkpoint anew
            folder = self._save()
            writer.mark_best(self.out, folder, found.loss, ranks=self.ranks, keep=self.config.checkpoints.keep)

    def _held_out_loss(self, stop: StopFlag) -> Evaluation:
        settings = self.config.evaluation
        loader = self._loader("eval", settings.micro_batch_size or self.config.batch.micro_batch_size)
        return evaluate(
            self.engine.module,
            islice(loader, settings.max_batches),
            self.build.datasets,
            ranks=self.ranks,
            stop=stop,
        )

    def _save_if_due(self) -> None:
        every = self.config.checkpoints.every
        if every and self.step % every == 0:
            self._save()

    def _save(self) -> Path:
        """A checkpoint of the last step that was made, unless it is there already."""
        if self.saved.folder is None or self.saved.step != self.step:
            folder = writer.save(
                self.engine,
                self.out,
                self.progress,
                ranks=self.ranks,
                about=self.about,
                keep=self.config.checkpoints.keep,
            )
            self.saved = _Saved(self.step, folder)
        assert self.saved.folder is not None
        return self.saved.folder

    def _write_config(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True)
        replace_file(self.out / CONFIG, text.encode())

    def _say(self, terminal: Terminal | None, text: str) -> None:
        if terminal is not None:
            terminal.say(text)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says on Linux is the peak of the program that started this one, if higher
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
