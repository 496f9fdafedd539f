"""One rank of a training run: from the config to the last checkpoint.

The order: the processes meet, the checkpoint to resume from is found, the model is built, the checkpoint's weights are
loaded, DeepSpeed takes the model, the optimizer's state is loaded, and the loop runs. Each has a module of its own.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from dst.errors import ConfigError
from shards import Build, ShardError
from shards.files import replace_file
from shards.loader import Loader
from shards.typed_json import to_json
from trainer.checkpoint import writer
from trainer.checkpoint.compatibility import changed_settings
from trainer.checkpoint.discovery import best, checkpoint_folder, find_together
from trainer.checkpoint.frozen_fingerprint import frozen_elements
from trainer.checkpoint.init_from import start_facts, start_notes
from trainer.checkpoint.reader import Checkpoint, RunState, check_together, load_optimizer, load_weights
from trainer.compat.deepspeed import loss_scale
from trainer.config.extensions import KEY as EXTENSIONS
from trainer.config.extensions import differing_code, extension_notes, model_extensions
from trainer.config.run import RESOLVED, TrainConfig, accumulation, sequence_length, to_tree
from trainer.distributed.deepspeed_engine import check_device, initialize, make_optimizer, process_group
from trainer.distributed.launch import STOP
from trainer.distributed.ranks import Ranks
from trainer.distributed.run_lock import run_lock
from trainer.distributed.stop_signal import StopFlag, Stopped
from trainer.model.lora import unadapted_experts
from trainer.model.param_groups import print_parameters
from trainer.training.assemble import assemble
from trainer.training.loop import Evaluation, StepResult, evaluate, train
from trainer.training.open_build import with_same_cache
from trainer.training.run_log import RunLog


def run_training(config: TrainConfig, build: Build) -> None:
    """Train, from the start or from a checkpoint, until the schedule ends or a signal asks to stop; then save.

    Raises ConfigError, ShardError or TrainError, the same on all ranks; or LostRankError.
    """
    out = Path(config.out)
    with process_group(config.distributed, (out / STOP).exists) as ranks:
        problems = check_device(config)
        if problems:
            raise ConfigError(problems)
        build = with_same_cache(build, ranks)
        with run_lock(out, ranks):
            resume, tree = config.checkpoints.resume, to_tree(config)
            checkpoint = find_together(out, resume, tree, build.manifest.hash, ranks)
            _Run(config, build, ranks, out, checkpoint).train()


@dataclass(slots=True)
class _Saved:
    """The step of this run's newest checkpoint, and its folder; None if it has none."""

    step: int
    folder: Path | None


class _Run:
    def __init__(
        self, config: TrainConfig, build: Build, ranks: Ranks, out: Path, checkpoint: Checkpoint | None
    ) -> None:
        self.config, self.build, self.ranks, self.out = config, build, ranks, out
        self.tree = to_tree(config)
        self.micro_batches = accumulation(config, ranks.world_size)
        self.loader = self._loader("train", config.batch.micro_batch_size)
        self.step = 0
        self.changes = changed_settings(checkpoint, self.tree) if checkpoint else []
        if checkpoint is not None:
            self.step = checkpoint.step
            try:
                self.loader.load_state_dict(checkpoint.state.loader)
            except ShardError as error:
                raise ConfigError([f"batch: {error}"]) from None
        self.steps = self._steps()  # of the order of the checkpoint
        is_own = checkpoint is not None and (
            checkpoint.folder.resolve() == checkpoint_folder(out, checkpoint.step).resolve()
        )
        self.saved = _Saved(self.step, checkpoint.folder if checkpoint and is_own else None)
        assembled = assemble(config, build.manifest.facts())
        self.weights = assembled.weights
        if ranks.is_first:
            self._write_config()
            print_parameters(assembled.rows, Console(stderr=True))
        extensions = ranks.gather(model_extensions(self.tree["model"]))
        if problems := differing_code(extensions):
            raise ConfigError(problems)
        self.run_facts = {
            "manifest": build.manifest.hash,
            "config": self.tree,
            "frozen": frozen_elements(assembled.model),
            "init_from": (to_json(checkpoint.content.init_from) if checkpoint else start_facts(config.model.init_from)),
            **({EXTENSIONS: extensions[0]} if extensions[0] else {}),
        }
        self.notes = (
            checkpoint.notes + extension_notes(self.tree["model"], checkpoint.extensions)
            if checkpoint
            else start_notes(config.model, build.manifest)
        )
        self.notes += unadapted_experts(assembled.model, config.lora)
        if checkpoint is not None:
            check_together(checkpoint, ranks=ranks)
            load_weights(assembled.model, checkpoint)
        self.engine = initialize(assembled.model, make_optimizer(config, assembled.groups), config, ranks.world_size)
        if checkpoint is not None:
            load_optimizer(self.engine, checkpoint, ranks=ranks)
        self.state = RunState(step=self.step, loader=self.loader.state_dict(), loss_scale=loss_scale(self.engine))

    def train(self) -> None:
        with ExitStack() as stack:
            log = RunLog(self.config, self.out, self.ranks, self.weights, step=self.step, steps=self.steps)
            stack.enter_context(log)
            for line in self.notes:
                log.print(f"note: {line}")
            if self.step >= self.steps:
                message = f"all {self.steps} steps are done; raise schedule.steps or schedule.epochs to train further"
                log.print(message)
            elif self.step:
                changed = f"; changed since then: {', '.join(self.changes)}" if self.changes else ""
                log.print(f"resuming after step {self.step} of {self.steps}{changed}")
            stop_file = self.out / STOP
            stop = StopFlag(lambda: self.ranks.is_first and stop_file.exists())
            stack.enter_context(stop.on_signals(signal.SIGTERM, signal.SIGINT))
            try:
                self._evaluate_if_missed(log, stop)
                self._make_steps(log, stop)
            except Stopped:
                pass  # the evaluation is made when the run resumes
            if self.step:
                self._save()
            if self.step < self.steps:
                option = "" if self.config.checkpoints.resume == "auto" else " with checkpoints.resume=auto"
                log.print(f"stopped after step {self.step}; the same command{option} resumes from there")
            if self.ranks.is_first:
                stop_file.unlink(missing_ok=True)

    def _make_steps(self, log: RunLog, stop: StopFlag) -> None:
        """Train to the last step, or until a stop is asked for. Raises Stopped if that happens in an evaluation."""
        log.start()
        with closing(self._results(stop)) as results:
            for result in results:
                self.step = result.step
                self.state = RunState(step=result.step, loader=result.loader, loss_scale=loss_scale(self.engine))
                log.add(result)
                if result.step % self.config.logging.every == 0 or result.step == self.steps or result.stopping:
                    self._log(log)
                try:
                    with log.window.paused():
                        if self._evaluation_is_due() and not result.stopping:
                            self._evaluate(log, stop)
                        self._save_if_due()
                except Stopped:
                    self._log(log)
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

    def _loader(self, split: str, micro_batch_size: int, max_batches: int | None = None) -> Loader:
        batch = self.config.batch
        num_ahead = self.micro_batches if split == "train" else 2
        return Loader(
            self.build,
            split=split,
            batch_size=micro_batch_size * self.ranks.world_size,
            max_length=sequence_length(self.config, self.build.manifest),
            max_images=batch.max_images,
            packed=batch.packed,
            seed=self.config.seed,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            workers=batch.workers,
            # a step fetches its micro-batches together, so that many are prepared
            prefetch=max(2, math.ceil(num_ahead / max(batch.workers, 1)) + 1),
            shuffle=batch.shuffle if split == "train" else None,
            max_sequences=max_batches and max_batches * micro_batch_size * self.ranks.world_size,
            decode=batch.decode,
        )

    def _steps(self) -> int:
        schedule = self.config.schedule
        if schedule.steps is not None:
            return schedule.steps
        return math.ceil(self.loader.count_sequences(schedule.epochs or 1) / self.config.batch.global_batch_size)

    def _log(self, log: RunLog) -> None:
        log.write(
            self.step,
            epoch=self.loader.epochs_before(self.state.loader["cursor"]),
            learning_rates={group["name"]: group["lr"] for group in self.engine.basic_optimizer.param_groups},
        )

    def _evaluation_is_due(self) -> bool:
        every = self.config.evaluation.every
        return bool(every) and (self.step % every == 0 or self.step == self.steps)

    def _evaluate_if_missed(self, log: RunLog, stop: StopFlag) -> None:
        """Make the evaluation of the last step if the run was stopped before it."""
        if self.step and self._evaluation_is_due() and not self.ranks.gather(log.has_evaluation(self.step))[0]:
            self._evaluate(log, stop)

    def _evaluate(self, log: RunLog, stop: StopFlag) -> None:
        """Measure the held-out loss and log it; if it is the lowest so far, save."""
        evaluation = self._held_out_loss(stop)
        log.write_evaluation(self.step, evaluation)
        # rank 0 decides: a network file system may show other ranks an outdated file
        best_before = self.ranks.gather(best(self.out))[0]
        # a run that went back to an earlier checkpoint may make the step of the best one again
        is_same_step = best_before is not None and best_before[0] == checkpoint_folder(self.out, self.step)
        if best_before is None or evaluation.loss < best_before[1] or is_same_step:
            folder = self._save()
            writer.mark_best(self.out, folder, evaluation.loss, ranks=self.ranks, keep=self.config.checkpoints.keep)

    def _held_out_loss(self, stop: StopFlag) -> Evaluation:
        settings = self.config.evaluation
        micro_batch_size = settings.micro_batch_size or self.config.batch.micro_batch_size
        loader = self._loader("eval", micro_batch_size, settings.max_batches)
        return evaluate(
            self.engine.module,
            loader,
            self.build.datasets,
            ranks=self.ranks,
            stop=stop,
        )

    def _save_if_due(self) -> None:
        every = self.config.checkpoints.every
        if every and self.step % every == 0:
            self._save()

    def _save(self) -> Path:
        """Write a checkpoint of the last step, unless there is one; returns its folder."""
        if self.saved.folder is None or self.saved.step != self.step:
            folder = writer.save(
                self.engine,
                self.out,
                self.state,
                ranks=self.ranks,
                run_facts=self.run_facts,
                keep=self.config.checkpoints.keep,
            )
            self.saved = _Saved(self.step, folder)
        assert self.saved.folder is not None
        return self.saved.folder

    def _write_config(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.tree, sort_keys=False, allow_unicode=True)
        replace_file(self.out / RESOLVED, text.encode())
