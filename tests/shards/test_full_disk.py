"""A build on a full disk: it is whole, so it opens, verifies and is read, and none of that writes a byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.small_blends import build, image_blend

READ = """
import pathlib, resource, signal, sys
import shards
from shards.loader import Loader

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    pathlib.Path(sys.argv[1], "probe").write_text("x")
except OSError:
    build = shards.open(sys.argv[1])
    assert shards.verify(build).problems == []
    loader = Loader(build, batch_size=1, max_length=512, seed=1, rank=0, world_size=1, workers=0)
    print(len(build["train"]), len([batch for _, batch in zip(range(3), loader)]))
"""


def test_a_whole_build_opens_and_is_read_where_no_byte_can_be_written(tmp_path: Path) -> None:
    build(image_blend(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "build")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.split() == ["12", "3"], done.stderr
