"""The decoder's linear layers in 4 bits while adapters are trained next to them (QLoRA).

The rule: only what stays frozen is quantized, and only in training. The original weights decide: checkpoints have their
fingerprint, and exports, chat and evaluation of a run merge the adapters into them.
"""

from __future__ import annotations

import torch
from torch import nn

from dst.errors import ConfigError
from trainer.checkpoint.frozen_fingerprint import remember_elements
from trainer.compat.bitsandbytes import quantized
from trainer.config.model import LoraAdapters
from trainer.model.lora import find_saved
from trainer.model.vision_chat import VisionChatModel

_WHERE = "lora.quantize_decoder"


def quantize_decoder(model: VisionChatModel, adapters: LoraAdapters, *, dtype: torch.dtype) -> None:
    """Quantize the decoder's linear layers in place, but for the head and for modules that are trained in full.

    dtype: what the layers compute in. Raises ConfigError if there are no such layers.
    """
    assert adapters.decoder is not None, "the config was checked"
    root, head = model.get_submodule("decoder"), model.decoder.get_output_embeddings()
    saved = find_saved(root, adapters.decoder.modules_to_save, where="lora.decoder")
    layers = {
        name: layer
        for name, layer in root.named_modules()
        if type(layer) is nn.Linear
        and layer is not head
        and not any(f"{name}.".startswith(f"{each}.") for each in saved)
    }
    if not layers:
        raise ConfigError([f"{_WHERE}: {type(root).__name__} has no linear layers to quantize; remove {_WHERE}"])
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        new = quantized(layer, dtype=dtype, device=device)
        remember_elements(new, layer.weight)
        setattr(root.get_submodule(parent), last, new)
