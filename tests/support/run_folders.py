"""Folders of training runs written by hand, for reports about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def record(step: int, **values: Any) -> dict[str, Any]:
    """A train entry of metrics.jsonl."""
    common = {"epoch": step / 100, "loss": 2.0, "lr": {"decoder": 1e-3}, "grad_norm": 1.0, "mfu": None}
    rates = {"tokens_per_second": 100.0, "trained_tokens_per_second": 10.0, "seconds_per_step": 1.0}
    shares = {"padding_share": 0.1, "data_wait_share": 0.0, "memory_bytes": 2**30}
    return {"kind": "train", "step": step, **common, **rates, **shares, **values}


def write_run(folder: Path, entries: Sequence[Mapping[str, Any]], **config: Any) -> Path:
    """A run that logged these entries; it logs every 10 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "config.yaml").write_text(yaml.safe_dump({"logging": {"every": 10}, **config}))
    return folder
