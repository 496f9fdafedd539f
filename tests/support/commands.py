"""dsvl-prep in the test's own process: its exit code and all that it prints, without the time that a start takes."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from preprocess.cli import main
from tests.support.in_process import without_processes


@dataclass(frozen=True, slots=True)
class Done:
    """What an ended command left."""

    returncode: int
    stdout: str
    stderr: str


def dsvl_prep(*arguments: str | int | Path, cwd: Path | None = None) -> Done:
    """Run the command; a build starts no process. An exception that is a bug passes."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with (
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", ["dsvl-prep", *map(str, arguments)]),
        without_processes(),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    for stream in streams:
        stream.seek(0)
    return Done(code, streams[0].read(), streams[1].read())
