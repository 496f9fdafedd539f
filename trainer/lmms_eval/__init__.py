"""The model `dsvl` of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval): its tasks with models of this package.

    python -m lmms_eval --model dsvl --model_args pretrained=exported --tasks vqav2_val --batch_size 8

lmms-eval finds it by the entry point in pyproject.toml, for which it imports this module alone: no torch and no model.
Rule: a question that the model cannot be asked as the task writes it is an error before the first answer, and never an
answer to something else. docs/evaluation.md describes all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL = "dsvl"


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = f"{__name__}.model"
    return ModelManifest(MODEL, simple_class_path=f"{module}.DsvlSimple", chat_class_path=f"{module}.DsvlChat")
