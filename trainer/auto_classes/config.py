"""config.json of an export that is not a LLaVA folder, as a configuration of transformers.

The rule: the sections that the LLaVA classes of transformers read say why the model is not one, so that those classes
refuse it. The architecture is in `parts`, as in dsvl.json.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from trainer.auto_classes.registration import register_model
from trainer.config.model import ModelConfig
from trainer.model_io.own_config import MODEL_TYPE, refusing_sections
from trainer.model_io.record import model_config


class DsvlConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers declares no types here
    """What trainer.model_io.own_config writes. Making one registers the model's class, so that it can be opened."""

    model_type = MODEL_TYPE
    attribute_map: ClassVar[dict[str, str]] = {"image_token_id": "image_token_index"}

    parts: dict[str, Any] | None = None
    """The section `model` of dsvl.json"""
    extensions: dict[str, Any] | None = None
    """The code of other packages that it was made with, see trainer.config.extensions"""
    refusals: list[str] | None = None
    """Why it is not a LLaVA model"""
    image_token_index: int = 0
    image_seq_length: int = 1
    """Tokens per image"""
    num_embeddings: int = 0
    """Tokens of the tokenizer"""

    def __post_init__(self, **options: Any) -> None:
        register_model()
        for section in refusing_sections(()):
            options.pop(section, None)
        self._decoder: Any = None
        super().__post_init__(**options)  # type: ignore[no-untyped-call]  # as above

    def architecture(self) -> ModelConfig:
        """The architecture. Raises ConfigError with all problems."""
        return model_config(self.parts or {})

    @property
    def text_config(self) -> Any:
        """The decoder's configuration; its own, without one."""
        if self._decoder is None and self.parts is not None:
            from trainer.model.decoder import load_hf_config  # imports torch

            self._decoder = load_hf_config(self.architecture().decoder, self.num_embeddings)
        return self if self._decoder is None else self._decoder

    def share_decoder(self, decoder: Any) -> None:
        """Take the configuration object of the decoder that was built, so that changes of either are seen by both."""
        self._decoder = decoder

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The decoder's configuration, whichever is asked for."""
        return self.text_config

    def to_dict(self) -> dict[str, Any]:
        tree: dict[str, Any] = super().to_dict()
        tree.pop("_decoder", None)
        return {**tree, **refusing_sections(self.refusals or ())}
