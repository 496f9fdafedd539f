"""Commands of a clean environment as forks of one process, which imports torch, transformers and DeepSpeed once.

A command takes a second or two instead of eight. The fork runs the same script, in its own folder with its own streams,
and ends as the script ends.

    with ForkedCommands(venv, scratch=folder) as commands:
        commands.run("dsvl-train", "export", "--model", "run", "--out", "exported", cwd=folder)
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support.clean_venvs import CleanVenv

_SERVER = """
import gc, json, os, runpy, sys
from trainer.compat.deepspeed import quiet_deepspeed

quiet_deepspeed()
import deepspeed, peft, trainer.cli, trainer.export.export, trainer.training.run
import transformers.models.llama.modeling_llama

gc.freeze()  # a collection in a fork would copy every page of what was imported
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
for number, path in enumerate(order["streams"]):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))
os.chdir(order["cwd"])
sys.path += order["path"]
sys.argv = order["command"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ForkedCommands:
    """Starts on entry; ends on exit, and what the imports wrote to stderr is in `stderr` then."""

    def __init__(self, venv: CleanVenv, *, scratch: Path) -> None:
        """scratch: an empty folder for the streams."""
        self._venv = venv
        self._scratch = scratch
        self._numbers = itertools.count()
        self._errors = scratch / "server"
        self.stderr = ""

    def __enter__(self) -> Self:
        with self._errors.open("w") as errors:
            self._server = subprocess.Popen(
                [self._venv.bin / "python", "-P", "-c", _SERVER],
                cwd=self._scratch,
                env=self._venv.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self.stderr = self._errors.read_text(encoding="utf-8")

    def run(
        self, program: str | Path, *arguments: str | Path, cwd: Path, stdin: str = "", path: Sequence[Path] = ()
    ) -> subprocess.CompletedProcess[str]:
        """program: dsvl-train, or a file with Python code. path: more folders of modules."""
        number = next(self._numbers)
        streams = [self._scratch / f"{number}.{name}" for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin, encoding="utf-8")
        for stream in streams[1:]:
            stream.touch()
        script = program if isinstance(program, Path) else self._venv.bin / program
        command = [str(script), *map(str, arguments)]
        order = {
            "command": command,
            "cwd": str(cwd),
            "path": [str(folder) for folder in path],
            "streams": [str(stream) for stream in streams],
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        code = self._server.stdout.readline()
        assert code, self._errors.read_text(encoding="utf-8")
        _, stdout, stderr = (stream.read_text(encoding="utf-8") for stream in streams)
        return subprocess.CompletedProcess(command, int(code), stdout, stderr)
