"""The folder that an export writes: complete or missing, and with the tokenizer of the build."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dst.errors import ConfigError
from shards import Build
from shards.build import TOKENIZER
from shards.files import partial_path, sync_folder
from trainer.errors import TrainError
from trainer.model_io.digests import FileFacts, file_facts

TOKENIZER_CONFIG = "tokenizer_config.json"


def check_out(out: Path) -> None:
    """Raises ConfigError unless the folder is empty or does not exist."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError([f"--out {out}: exists already and is not an empty folder; choose another, or remove it"])


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that gets the name `out` when all is written, unless the caller has removed it.

    Raises TrainError if it cannot be written.
    """
    check_out(out)
    partial = partial_path(out.absolute())
    try:
        partial.mkdir(parents=True)
        yield partial
        if not partial.exists():
            return
        for path in partial.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_folder(partial)
        os.rename(partial, out)  # replaces an empty folder
        sync_folder(out.absolute().parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise TrainError(f"{out}: cannot be written ({why}); nothing was exported") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_tokenizer(build: Build, folder: Path, keys: Mapping[str, Any] | None = None) -> dict[str, FileFacts]:
    """Copy the build's files byte for byte; returns them by name. Raises ShardError if they were edited.

    keys: to add to tokenizer_config.json; ids do not depend on them.
    """
    source = build.tokenizer_folder()
    copied: dict[str, FileFacts] = {}
    for path, digest in sorted(build.manifest.files.items()):
        if path.startswith(f"{TOKENIZER}/"):
            name = path.removeprefix(f"{TOKENIZER}/")
            shutil.copyfile(source / name, folder / name)
            copied[name] = replace(file_facts(folder / name), sha256=digest)
    if keys:
        edited = folder / TOKENIZER_CONFIG
        config = {**json.loads(edited.read_text(encoding="utf-8")), **keys}
        edited.write_text(json.dumps(config, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")
        copied[TOKENIZER_CONFIG] = file_facts(edited, sha256=True)
    return copied
