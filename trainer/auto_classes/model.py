"""An export that is not a LLaVA folder, as a model of transformers: `forward`, `generate` and pipelines.

Rules
- The computation is VisionChatModel's. This class only turns the arguments of transformers into what that takes.
- With MMCA every forward needs to know which tokens are images, those in the KV cache included. `generate` derives it
  from all ids; whoever passes a filled cache or embeddings to `forward` says it in `image_mask`.

Shapes: B sequences, T new tokens, K tokens in the cache and new ones, N images, S side in pixels, Q tokens per image,
H hidden size, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from trainer.attention.layout import build_layout
from trainer.auto_classes.config import DsvlConfig
from trainer.compat.transformers import cache_argument
from trainer.config.extensions import KEY as EXTENSIONS
from trainer.config.extensions import extension_notes, recorded_extensions, require_consent
from trainer.config.model import ModelConfig
from trainer.model.build_model import join_decoder
from trainer.model.decoder import build_decoder
from trainer.model.decoder_logits import finish_logits
from trainer.model_io.load import ZeroInitialisation

_CACHE = cache_argument()


class DsvlForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # declared without types
    """Encoder, projector and decoder, by the names that the exported weights have.

    allow_extensions: encoders and projectors of other packages that the folder may name, and that are then imported;
    see trainer.load. Raises ConfigError if the folder names others, or if its parts cannot be built.
    """

    config_class = DsvlConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: DsvlConfig, *, allow_extensions: Collection[str] = ()) -> None:
        asked_attention = config._attn_implementation
        super().__init__(config)
        parts = _allowed_parts(config, allow_extensions)
        if asked_attention is not None:
            parts = replace(parts, decoder=replace(parts.decoder, attn_implementation=asked_attention))
        dtype = torch.get_default_dtype()
        decoder = build_decoder(parts.decoder, config.num_embeddings, parts.attention, weights=False, dtype=dtype)
        is_loading = torch.get_default_device().type == "meta"
        with torch.device("cpu"), ZeroInitialisation() if is_loading else nullcontext():  # for _computed_buffers
            chat = join_decoder(parts, decoder, image_id=config.image_token_index, weights=False, dtype=dtype)
        self.encoder, self.projector = chat.encoder, chat.projector
        self.decoder: Any = chat.decoder
        self._chat = (chat,)  # in a tuple, so that its parts are submodules once
        self._computed = _computed_buffers({"encoder": chat.encoder, "projector": chat.projector})
        config.share_decoder(decoder.config)
        self.post_init()  # type: ignore[no-untyped-call]  # as above

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As of any model; then what no file holds gets its values: buffers that encoder and projector computed."""
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, value in model._computed.items():
            model.get_buffer(name).copy_(value)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.decoder.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.decoder.get_output_embeddings()
        return head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.decoder.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """Logits [B, T, V], as any causal language model of transformers, with images.

        input_ids: [B, T], with `image_seq_length` placeholders per image. pixel_values: [N, 3, S, S], normalised, the
        images of the new tokens in their order. attention_mask: 0 for padding, [B, K]. image_mask: bool [B, K], True
        where a token is part of an image; only needed for MMCA with a filled cache or `inputs_embeds`. cache: in the
        releases of transformers that call it so, else past_key_values. Raises ValueError for arguments that do not fit.
        """
        cache = past_key_values if cache is None else cache
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("got both or neither of input_ids and inputs_embeds; expected exactly one")
        is_image_BT: Any = None
        embeddings_BTH: Any = inputs_embeds
        if input_ids is not None:
            is_image_BT = input_ids == self.config.image_token_index
            embeddings_BTH = self._embed(input_ids, is_image_BT, pixel_values)
        elif pixel_values is not None:
            raise ValueError("got pixel_values with inputs_embeds; expected the images' embeddings in inputs_embeds")
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        attention_mask, position_ids = _places(embeddings_BTH, num_cached, attention_mask, position_ids)
        arguments: dict[str, Any] = {"attention_mask": attention_mask}
        if self._chat[0].uses_layout:
            if image_mask is None and num_cached == 0:
                image_mask = is_image_BT
            arguments = {
                "attention_mask": None,
                "attention_layout": _layout(embeddings_BTH, attention_mask, image_mask),
            }
        outputs = self.decoder.base_model(
            inputs_embeds=embeddings_BTH,
            position_ids=position_ids,
            use_cache=use_cache,
            **{_CACHE: cache},
            **arguments,
            **options,
        )
        hidden_BTH = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = finish_logits(self.decoder.config, self.decoder.get_output_embeddings()(hidden_BTH[:, kept]))
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            **{_CACHE: outputs.get(_CACHE)},
        )
        return result.to_tuple() if return_dict is False else result

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of one forward in `generate`: pixels only with their placeholders, and which tokens are images.

        input_ids: [B, K], all tokens. kwargs: transformers looks for this name, and then allows forward's arguments.
        """
        pixel_values = kwargs.pop("pixel_values", None)
        arguments: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, **kwargs
        )
        image_id = self.config.image_token_index
        arguments["image_mask"] = input_ids == image_id
        if bool((arguments["input_ids"] == image_id).any()):
            arguments["pixel_values"] = pixel_values
        return arguments

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """For beams and several answers: each sequence is repeated with all of its images, not image by image."""
        pixel_values = options.pop("pixel_values", None)
        if pixel_values is not None and input_ids is not None and expand_size > 1:
            places = (input_ids == self.config.image_token_index).sum(1)
            of_rows = pixel_values.split((places // self.config.image_seq_length).tolist())
            pixel_values = torch.cat([images for images in of_rows for _ in range(expand_size)])
        mixin: Any = super()
        input_ids, expanded = mixin._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **options
        )
        return input_ids, expanded if pixel_values is None else {**expanded, "pixel_values": pixel_values}

    def _embed(
        self, input_ids: torch.Tensor, is_image_BT: torch.Tensor, pixel_values: torch.Tensor | None
    ) -> torch.Tensor:
        """[B, T, H]. Raises ValueError if there are not as many placeholders as the images need."""
        num_images, num_places = 0 if pixel_values is None else len(pixel_values), int(is_image_BT.sum())
        if num_places != num_images * self.config.image_seq_length:
            raise ValueError(
                f"input_ids have {num_places} tokens of images, but {num_images} images need "
                f"{self.config.image_seq_length} each; expected input_ids and pixel_values of one call of the processor"
            )
        embeddings_BTH: torch.Tensor = self.get_input_embeddings()(input_ids.masked_fill(is_image_BT, 0))
        if pixel_values is None or not num_images:
            return embeddings_BTH
        dtype = next(self.encoder.parameters()).dtype
        features_NQH = self._chat[0].encode_pixels(pixel_values.to(dtype))
        features_NQH = features_NQH.to(embeddings_BTH.device, embeddings_BTH.dtype)
        return embeddings_BTH.masked_scatter(is_image_BT[..., None].to(embeddings_BTH.device), features_NQH)


def _allowed_parts(config: DsvlConfig, allowed: Collection[str]) -> ModelConfig:
    """The architecture, if it imports no code but what the caller named; notes about other code are logged."""
    recorded = recorded_extensions({EXTENSIONS: config.extensions or {}})
    require_consent(Path(config.name_or_path or ""), config.parts, recorded, allowed)
    for note in extension_notes(config.parts, recorded):
        logging.get_logger("trainer").warning(note)
    return config.architecture()


def _computed_buffers(parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The buffers that are not stored, by their names in the whole model."""
    return {
        f"{part}.{name}.{buffer}": getattr(submodule, buffer).clone()
        for part, module in parts.items()
        for name, submodule in module.named_modules()
        for buffer in submodule._non_persistent_buffers_set
        if getattr(submodule, buffer) is not None
    }


def _places(
    embeddings_BTH: torch.Tensor,
    num_cached: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask [B, K] and the positions [B, T], which count from a sequence's own first token.

    Raises ValueError for a mask of another shape.
    """
    batch, num_new = embeddings_BTH.shape[:2]
    num_all = num_cached + num_new
    if attention_mask is None:
        attention_mask = torch.ones(batch, num_all, dtype=torch.int64, device=embeddings_BTH.device)
    if list(attention_mask.shape) != [batch, num_all]:
        raise ValueError(
            f"attention_mask is {list(attention_mask.shape)}; expected [{batch}, {num_all}], 0 for padding, for all "
            "tokens, those in the cache included (a static cache is not supported)"
        )
    if position_ids is None:
        position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, num_cached:]
    return attention_mask, position_ids


def _layout(embeddings_BTH: torch.Tensor, attention_mask: torch.Tensor, image_mask: torch.Tensor | None) -> Any:
    """The layout for MMCA. Raises ValueError unless it is known for all tokens whether they are images."""
    if image_mask is None or image_mask.shape != attention_mask.shape:
        got = "none" if image_mask is None else list(image_mask.shape)
        raise ValueError(
            f"image_mask is {got}; expected bool {list(attention_mask.shape)}, True where a token is part of an image, "
            "since text attends to text and to images separately, also to those in the cache"
        )
    is_image = image_mask.to(attention_mask.device)
    return build_layout(is_image, attention_mask.long(), num_queries=embeddings_BTH.shape[1])
