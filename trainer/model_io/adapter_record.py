"""dsvl-adapter.json, the list of the files of an exported adapter and of their digests.

peft loads the adapter and reads none of it; `dsvl-train verify` compares the folder with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.errors import FieldError
from shards.typed_json import from_json
from trainer.errors import TrainError
from trainer.model_io.digests import FileFacts, read_sealed

ADAPTER_RECORD = "dsvl-adapter.json"
ADAPTER_FORMAT, ADAPTER_VERSION = "dsvl-adapter", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """What the file says."""

    format: Literal["dsvl-adapter"]
    version: Literal[1]
    files: Mapping[str, FileFacts]


def read_adapter_record(folder: Path) -> AdapterRecord:
    """The record of an adapter. Raises TrainError if it is missing or damaged."""
    try:
        return from_json(AdapterRecord, read_sealed(folder / ADAPTER_RECORD))
    except (OSError, ValueError, FieldError) as error:
        raise TrainError(
            f"{folder / ADAPTER_RECORD}: cannot be used ({error}); copy it again, or export the adapter again"
        ) from None
