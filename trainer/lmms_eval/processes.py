"""Several processes of lmms-eval, each with a share of the documents and a model of its own.

Rule: an error in one of them ends all. lmms-eval catches exceptions and waits for the other processes, which for hours
wait for the one that failed; a process that ends with an error is noticed by its launcher, which ends the rest.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dst.errors import DsvlError


def own_device() -> str | None:
    """Of this process, if there are several; None: as open_model chooses."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and torch.cuda.is_available() else None


@contextmanager
def ending_all() -> Iterator[None]:
    """Where there are several processes, an exception ends this one with exit code 1."""
    try:
        yield
    except Exception as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        text = str(error) if isinstance(error, DsvlError) else "".join(traceback.format_exception(error))
        sys.stderr.write(f"process {os.environ.get('RANK', '0')}: {text.rstrip()}\n")
        sys.exit(1)
