"""Make the Auto classes of transformers know exports, without importing transformers or torch before somebody does.

The rule: `import trainer` stays cheap. Each class is registered right after transformers imported the table that it
belongs to; the model's own class, which needs torch, when the configuration of an export is opened. Classes come from
this package alone: no code of a model's folder is run.
"""

from __future__ import annotations

import importlib

from trainer.import_hooks import after_import, before_import


def register_with_transformers() -> None:
    """Register classes in the tables of transformers, now or when it imports them. Called once, by `import trainer`."""
    before_import("torchvision", lambda: importlib.import_module("trainer.compat"))  # which makes it importable
    after_import("transformers.models.auto.configuration_auto", _register_config)
    after_import("transformers.models.auto.image_processing_auto", _register_image_processor)
    after_import("transformers.models.auto.processing_auto", _register_processor)


def register_model() -> None:
    """Register the class of a model. Imports torch and transformers."""
    importlib.import_module("trainer.compat")  # before transformers, which looks for torchvision
    from transformers import AutoModelForImageTextToText

    from trainer.auto_classes.config import DsvlConfig
    from trainer.auto_classes.model import DsvlForConditionalGeneration

    AutoModelForImageTextToText.register(DsvlConfig, DsvlForConditionalGeneration, exist_ok=True)


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from trainer.auto_classes.config import DsvlConfig

    AutoConfig.register(DsvlConfig.model_type, DsvlConfig, exist_ok=True)


def _register_image_processor() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from trainer.auto_classes.config import DsvlConfig
    from trainer.auto_classes.image_processor import DsvlImageProcessor

    AutoImageProcessor.register(
        DsvlConfig,
        image_processor_classes={"pil": DsvlImageProcessor, "torchvision": DsvlImageProcessor},
        exist_ok=True,
    )


def _register_processor() -> None:
    from transformers.models.auto.processing_auto import AutoProcessor

    from trainer.auto_classes.config import DsvlConfig
    from trainer.auto_classes.processor import DsvlProcessor

    AutoProcessor.register(DsvlConfig, DsvlProcessor, exist_ok=True)  # type: ignore[no-untyped-call]
