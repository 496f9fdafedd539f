"""Programs as forks of one process, which has imported what is heavy once: seconds less for each than in a new process.

A program is a script or code. It runs as if started by itself: in its own folder, with its own streams, and the
interpreter ends as it does after a script.

    with ForkedPrograms(sys.executable, "import torch", scratch=folder) as programs:
        programs.run("import torch; print(torch.ones(1))", cwd=folder)
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

from tests.support.waiting import LIMIT_S

_SERVER = """
import gc, json, os, runpy, sys, warnings
exec(sys.argv[1], {})
gc.freeze()  # a collection in a fork would copy every page of what was imported
for line in sys.stdin:
    order = json.loads(line)
    with warnings.catch_warnings(action="ignore"):  # of Python 3.12, that there are threads: none holds a lock here
        child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.setpgid(0, 0)
for number, path in enumerate(order["streams"]):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))
os.chdir(order["cwd"])
sys.path += order["path"]
sys.argv = order["argv"]
if order["code"] is None:
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    exec(order["code"], {"__name__": "__main__"})
"""


class ForkedPrograms:
    """Starts on entry and ends on exit; `stderr` is then what the imports wrote."""

    def __init__(
        self, python: str | Path, imports: str, *, scratch: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """imports: code that the process runs first. scratch: an empty folder for streams."""
        self._command = [str(python), "-P", "-c", _SERVER, imports]
        self._environment = environment
        self._scratch = scratch
        self._errors = scratch / "stderr"
        self._numbers = itertools.count()
        self.stderr = ""

    def __enter__(self) -> Self:
        with self._errors.open("w") as errors:
            self._server = subprocess.Popen(
                self._command,
                cwd=self._scratch,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()
        self.stderr = self._errors.read_text(encoding="utf-8")

    def run(
        self,
        program: str | Path,
        *arguments: str | Path,
        cwd: Path,
        stdin: str | Path = "",
        path: Sequence[Path] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, in a process group of its own.

        program: code, or the path of a script. stdin: text, or the path of a file. path: more folders of modules.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        number = next(self._numbers)
        streams = [self._scratch / f"{number}.{name}" for name in ("stdin", "stdout", "stderr")]
        for stream in streams:
            stream.touch()
        if isinstance(stdin, Path):
            streams[0] = stdin
        else:
            streams[0].write_text(stdin, encoding="utf-8")
        argv = [str(program) if isinstance(program, Path) else "-c", *map(str, arguments)]
        order = {
            "argv": argv,
            "code": None if isinstance(program, Path) else program,
            "cwd": str(cwd),
            "path": [str(folder) for folder in path],
            "streams": [str(stream) for stream in streams],
        }
        print(json.dumps(order), file=self._server.stdin, flush=True)
        if not wait([self._server.stdout.fileno()], LIMIT_S):
            os.killpg(self._server.pid, signal.SIGKILL)
        code = self._server.stdout.readline()
        stdout, stderr = (stream.read_text(encoding="utf-8") for stream in streams[1:])
        assert code, f"no end within {LIMIT_S} s:\n{self._errors.read_text(encoding='utf-8')}{stdout}{stderr}"
        return subprocess.CompletedProcess(argv, int(code), stdout, stderr)
