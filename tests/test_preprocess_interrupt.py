"""kill -9 at any moment, then the same command: the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import shards
from small_blends import chat_blend, chat_record, files_of, write_images

COMMAND = [sys.executable, "-m", "preprocess.cli", "build", "--workers", "2"]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_in_identical_shards(tmp_path: Path) -> None:
    names = write_images(tmp_path / "mine", 600)
    records = [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)]
    blend = chat_blend(tmp_path, records, shard={"max_images": 40}, image={"store": "resized", "size": 224})
    command = [*COMMAND, "--blend", str(blend)]
    start = time.monotonic()
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    seconds = time.monotonic() - start
    whole = files_of(tmp_path / "whole")
    moments = random.Random(20)
    killed = 0
    for _ in range(20):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "build")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moments.uniform(0.05, 1.0) * seconds / 3)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if (tmp_path / "build/manifest.json").exists():
            assert files_of(tmp_path / "build") == whole
            for shard in list((tmp_path / "build").glob("shards/*/*.tar"))[::3]:
                shard.unlink()  # give the next run something to do, and to be killed in
    assert killed >= 10
    subprocess.run([*command, "--out", str(tmp_path / "build")], check=True, capture_output=True)
    assert files_of(tmp_path / "build") == whole
    assert shards.verify(shards.open(tmp_path / "build")).problems == []
