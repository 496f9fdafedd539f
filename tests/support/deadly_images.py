"""Compile tasks in which some images end the process, as a decoder that crashes does.

Worker processes import this module, so it imports little.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

from preprocess.compiler import member
from preprocess.compiler.run_task import run_task
from preprocess.compiler.task import CompileTask, TaskResult
from preprocess.images.prepare import prepare_image

KILLS = b"kills its process"
KILLS_ONCE = b"ends its process once: "


def with_mark(image: bytes, mark: bytes) -> bytes:
    """The JPEG with a mark in a comment."""
    return image[:2] + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + image[2:]


def run_fragile_task(task: CompileTask) -> TaskResult:
    """`run_task`, but the process ends at an image with the mark KILLS, or KILLS_ONCE and the path of a file."""

    def prepare(source: bytes, *arguments: Any, **options: Any) -> Any:
        if KILLS in source:
            os.kill(os.getpid(), signal.SIGKILL)
        if KILLS_ONCE in source:
            trace = Path(os.fsdecode(source.partition(KILLS_ONCE)[2].partition(b"\n")[0]))
            if not trace.exists():
                trace.touch()
                os._exit(7)
        return prepare_image(source, *arguments, **options)

    with mock.patch.object(member, "prepare_image", prepare):
        return run_task(task)
