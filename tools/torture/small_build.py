"""The build that is tortured: a few images, several shards, both splits, an archive of images."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.small_blends import build, chat_record, files_of, jpeg, write_blend, write_chat


class SmallBuild:
    """A blend file, and the files of its undisturbed build."""

    def __init__(self, folder: Path, records: int = 48) -> None:
        self.folder = folder
        (folder / "mine").mkdir(parents=True)
        with tarfile.open(folder / "mine/images.tar", "w") as archive:
            for number in range(records // 2):
                path = folder / f"{number}.jpg"
                path.write_bytes(jpeg(number, (64, 48)))
                archive.add(path, f"{number}.jpg")
                path.unlink()
        write_chat(
            folder / "mine",
            (chat_record(number, images=[f"{number // 2}.jpg"], rounds=2) for number in range(records)),
        )
        dataset = {"name": "mine", "adapter": "chat", "root": "mine", "images": "images.tar"}
        self.blend = write_blend(
            folder / "blend.yaml", [dataset], split={"eval": 0.2}, shard={"max_samples": 6}, image={"check": "decode"}
        )
        self.whole = folder / "whole"
        build(self.blend, out=self.whole)
        self.files = files_of(self.whole)

    def command(self, out: Path, workers: int = 1) -> list[str]:
        return [
            *(sys.executable, "-m", "preprocess.cli", "build", "--blend", str(self.blend)),
            *("--out", str(out), "--workers", str(workers)),
        ]

    def start(self, out: Path, **options: object) -> subprocess.Popen[bytes]:
        """The command in a process group of its own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            self.command(out),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **options,
        )

    def difference(self, out: Path) -> str | None:
        """How a finished build differs from the undisturbed one; None if it does not."""
        actual = files_of(out)
        changed = sorted(
            name for name in {*actual, *self.files} if actual.get(name) != self.files.get(name) and name[:1] != "."
        )
        return f"files differ: {', '.join(changed[:5])}" if changed else None
