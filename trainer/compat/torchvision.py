"""Let torchvision be imported beside a torch that its compiled operators do not fit.

open_clip, peft, timm and model files of transformers import torchvision, and its import fails if its own library did
not load, as a CUDA build's does beside a CPU-only torch. The rule: declare the two operators that the import describes,
if and only if the library cannot load. Then transforms work, and calling such an operator still raises.

    declare_operators()  # before anything imports those packages
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def declare_operators() -> torch.library.Library | None:
    """Returns what holds the declarations, or None if there was nothing to do: torchvision is healthy or absent."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]  # torch declares no types here
        except OSError:
            continue
        return None
    declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # as above
    for schema in _SCHEMAS:
        declared.define(schema)  # type: ignore[no-untyped-call]  # as above
    return declared
