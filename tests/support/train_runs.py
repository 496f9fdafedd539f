"""Training runs for tests: ranks as processes that share one import of the heavy packages.

A rank is forked from a server that imported torch and DeepSpeed once, so a run costs a second or two instead of ten.
It executes the real `dsvl-train` command with the environment that a launcher would give it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tests.support import small_blends
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S, wait_until
from trainer.distributed.launcher_environment import reserved_port

LENGTH = 128
SIDE = 32
IMAGE_TOKENS = 4

# The server knows where our packages are by the environment alone, and passes over what it cannot import.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.train_runs_preload"])


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished run left."""

    codes: list[int]
    output: str
    """Of all ranks, stdout and stderr"""


class Ranks:
    """A run that has started."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        ranks: int,
        log: Path,
        max_file_bytes: int | None = None,
        hold_after: int | None = None,
    ) -> None:
        """max_file_bytes: larger files cannot be written, as on a full disk.

        hold_after: the run waits after this step, once metrics.jsonl has it, until `release` is called.
        """
        self._log = log
        self._log.mkdir(parents=True, exist_ok=True)
        self._hold = log / "hold"
        self._hold.touch()
        self._until_the_end = contextlib.ExitStack()
        port = self._until_the_end.enter_context(reserved_port())
        self.processes = [
            _CONTEXT.Process(
                target=_rank,
                args=(
                    _environment(rank, ranks, port),
                    [str(argument) for argument in arguments],
                    str(log / f"{rank}.log"),
                    max_file_bytes,
                    (hold_after, self._hold),
                ),
            )
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> Done:
        for process in self.processes:
            process.join(LIMIT_S)
        self._until_the_end.close()
        hung = [process for process in self.processes if process.is_alive()]
        for process in hung:
            process.kill()
            process.join()
        done = Done([int(process.exitcode or 0) for process in self.processes], self.output())
        assert not hung, f"a rank hangs:\n{done.output}"
        return done

    def output(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self._log.glob("*.log")))

    def kill(self, number: int = signal.SIGKILL, *, workers: bool = False) -> None:
        """Send a signal to every rank, and to its loader's workers too."""
        for process in self.processes:
            below = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if workers else []
            assert bool(below) == workers
            for pid in (*map(int, below), process.pid):
                assert pid is not None
                os.kill(pid, number)

    def wait_for_step(self, out: Path, step: int) -> None:
        """Until metrics.jsonl has a step; the run has not ended then."""

        def is_logged() -> bool:
            assert all(process.is_alive() for process in self.processes), self.output()
            return any(entry["step"] >= step for entry in journal(out))

        wait_until(is_logged)

    def release(self) -> None:
        """Resume from the step that hold_after named."""
        self._hold.unlink()


def start(config: Path, *settings: str, ranks: int = 1, **options: Any) -> Ranks:
    """`dsvl-train run` on `ranks` ranks."""
    log = config.parent / f"log-{time.monotonic_ns()}"
    return Ranks(
        ["run", "--config", config, *(f"--set={setting}" for setting in settings)], ranks=ranks, log=log, **options
    )


def train(config: Path, *settings: str, ranks: int = 1, code: int = 0, **options: Any) -> Done:
    """`dsvl-train run` to its end, which is this exit code on every rank."""
    done = start(config, *settings, ranks=ranks, **options).wait()
    assert done.codes == [code] * ranks, done.output
    assert code == 0 or "Traceback" not in done.output, done.output
    return done


def in_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module where the heavy packages are loaded; it reports through files."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == 0


def journal(out: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    try:
        text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def folders(out: Path) -> list[str]:
    """Names of the checkpoints."""
    return sorted(path.name for path in (out / "checkpoints").iterdir() if path.is_dir())


def losses(out: Path) -> list[float]:
    """The loss of every step from 1 on, each logged once."""
    entries = [entry for entry in journal(out) if entry["kind"] == "train"]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


def compiled(folder: Path) -> Path:
    """A build of two datasets: one of text alone, one with up to three images a sample; some held out.

    It is the same in every checkout: the manifest has the tokenizer's path, and so the order of samples depends on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer").symlink_to(small_blends.TOKENIZER)
    names = small_blends.write_images(folder / "seen", 40)
    small_blends.write_chat(
        folder / "seen",
        [
            small_blends.chat_record(number, images=names[number : number + number % 4], rounds=1 + number % 2)
            for number in range(40)
        ],
    )
    small_blends.write_chat(folder / "text", [small_blends.chat_record(number) for number in range(40)])
    blend = small_blends.write_blend(
        folder / "blend.yaml",
        [
            {"name": "seen", "adapter": "chat", "root": "seen"},
            {"name": "text", "adapter": "chat", "root": "text"},
        ],
        tokenizer="tokenizer",
        image_tokens=IMAGE_TOKENS,
        limits={"max_length": LENGTH},
        image={"size": SIDE, "store": "resized"},
        split={"eval": 0.2},
        shard={"max_samples": 8},
    )
    return small_blends.build(blend).path


def config_file(folder: Path, build: Path | str, **settings: Any) -> Path:
    """train.yaml for a tiny model in fp32 that logs every step; `settings` go over its sections."""
    tree: dict[str, Any] = {
        "build": str(build),
        "out": str(folder / "out"),
        "precision": "fp32",
        "model": {
            "encoder": {"kind": "tiny", "config": {"image_size": SIDE, "patch_size": 16}},
            "projector": {"kind": "linear"},
            "decoder": {"preset": "tiny_llama"},
        },
        "learning_rates": {"projector": 1e-3, "embeddings": 1e-3, "decoder": 1e-3},
        "batch": {"global_batch_size": 4, "micro_batch_size": 1, "workers": 0},
        "schedule": {"steps": 8},
        "zero": {"stage": 2, "param_persistence_threshold": 0},
        "logging": {"every": 1, "tensorboard": False},
        "checkpoints": {"every": 4},
    }
    for section, values in settings.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, Mapping) else values
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What a launcher sets, and where builds behind URLs are found and kept."""
    remote = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "DSVL_CACHE", "NO_PROXY"))}
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return remote | {name: str(value) for name, value in own.items()}


def _rank(
    environment: Mapping[str, str],
    arguments: list[str],
    log: str,
    max_file_bytes: int | None,
    hold: tuple[int | None, Path],
) -> None:
    """What a rank's process does."""
    import torch

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a process of its own
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    sys.argv = ["dsvl-train", *arguments]
    if hold[0] is not None:
        _hold_after(hold[0], hold[1])
    from trainer.cli import main

    main()
    sys.stdout.flush()


def _hold_after(step: int, file: Path) -> None:
    """The rank that writes metrics.jsonl waits after this step's line until the file is gone, and the others for it."""
    from trainer.training.metrics import Journal, Record

    write = Journal.write

    def held(journal: Journal, entry: Record) -> None:
        write(journal, entry)
        if entry.step == step:
            wait_until(lambda: not file.exists())

    mock.patch.object(Journal, "write", held).start()
