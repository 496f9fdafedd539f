"""Make torchvision importable next to a torch that its compiled operators do not fit.

open_clip, peft, timm and model files of transformers import torchvision. That import fails if torchvision's own library
did not load, as that of a CUDA build next to a CPU-only torch. The rule: declare the two operators that the import
looks up, if and only if the library cannot load. Then transforms work, and calling such an operator still raises.

The package trainer.compat calls `declare_operators` when it is imported.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def declare_operators() -> torch.library.Library | None:
    """Returns what holds the declarations; None if torchvision loads or is absent, or if torch cannot be imported."""
    try:
        import torch
    except (ImportError, OSError):  # trainer.compat.torch explains it
        return None
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
