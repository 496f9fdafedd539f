"""`dsvl-train serve` as a process, with a tiny model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.exports import config_of, make_build, make_model
from tests.support.paths import ROOT
from tests.support.waiting import LIMIT_S, wait_until
from trainer.export.export import export_model

_URL = re.compile(r"listening at (http://\S+?/);")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeProcess:
    """stderr: the lines until now. url: with a slash at the end."""

    process: subprocess.Popen[str]
    stderr: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Raises AssertionError if the process has ended before it listened."""

        def look() -> str | None:
            match = _URL.search("".join(self.stderr))
            assert match or self.process.poll() is None, "".join(self.stderr)
            return match and match[1]

        return str(wait_until(look))

    def wait_until_ready(self) -> str:
        """The line that it prints when the model is loaded; before, it answers 503."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, *signals: signal.Signals) -> int:
        """Its exit code after these signals."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


def tiny_export(folder: Path) -> Path:
    """An exported model of MMCA and CLIP with random weights, named `tiny`."""
    build = make_build(folder)
    config = config_of(build, attention="mmca")
    export_model(make_model(config, build), config, build, folder / "tiny", step=1)
    return folder / "tiny"


@contextmanager
def serve_process(
    model: Path, *options: str, environment: Mapping[str, str] | None = None, port: int = 0
) -> Iterator[ServeProcess]:
    """It is killed when the block ends, if it still runs."""
    command = [sys.executable, "-m", "trainer.cli", "serve", "--model", str(model), "--port", str(port), *options]
    added = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | added, stdout=pipe, stderr=pipe, text=True)
    served = ServeProcess(process=process)
    reader = threading.Thread(target=_keep, args=(process, served.stderr), daemon=True)
    reader.start()
    try:
        yield served
    finally:
        process.kill()
        process.wait()
        reader.join()
        for pipe_end in (process.stdout, process.stderr):
            if pipe_end is not None:
                pipe_end.close()


def _keep(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
