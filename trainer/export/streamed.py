"""The model of a checkpoint, whose decoder is read, merged and dropped tensor by tensor while it is written.

The rule: each tensor equals that of trainer.training.restore.restore to the bit. Encoder and projector are loaded as
there; only decoders are large. The decoder is on the meta device, and `value` makes one of its tensors: read from the
files of the base model, cast as the run had it, or read from the checkpoint if it was trained, and merged with its
adapter in float32. So memory holds the encoder, the adapters, and a few copies of the largest tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dst.errors import ConfigError
from trainer.checkpoint.frozen_fingerprint import is_unchanged
from trainer.checkpoint.reader import Checkpoint, load_weights, other_weights
from trainer.compat.peft import adapted_layers, merged
from trainer.compat.transformers import linear_types
from trainer.model.lora import merge_lora, remove_adapters
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.decoder_files import DecoderFiles, find_decoder_files
from trainer.model_io.load import DTYPES
from trainer.training.assemble import assemble
from trainer.training.restore import OpenedRun, for_this_machine, restore


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedModel:
    """A merged model in evaluation mode; the tensors of its decoder may be on the meta device."""

    model: VisionChatModel
    decoder: _Decoder | None = None
    """None if all weights are in memory"""

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of one of the model's tensors.

        Raises ConfigError if a frozen parameter has other values than in the run, TrainError for a damaged file.
        """
        return tensor if self.decoder is None or not tensor.is_meta else self.decoder.value(tensor)


def streamed(run: OpenedRun) -> StreamedModel:
    """The model of a run; with all weights in memory where they cannot be read one by one. Raises as `restore` does."""
    if run.config.model.init_from is None and run.config.model.decoder.name is None:
        return StreamedModel(model=restore(run))
    model = assemble(for_this_machine(run.config), run.facts, lazy_decoder=True).model.float()
    _give_adapters_memory(model)
    load_weights(model, run.checkpoint)
    decoder = model.get_submodule("decoder")
    tables = (model.decoder.get_input_embeddings(), model.decoder.get_output_embeddings())
    if any(
        layer in tables or not isinstance(layer.get_base_layer(), linear_types())
        for layer in adapted_layers(decoder).values()
    ):
        return StreamedModel(model=restore(run))
    merge_lora(model.encoder)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adapters = {f"decoder.{name}.weight": layer for name, layer in remove_adapters(decoder).items()}
    files = find_decoder_files(run.config.model, model)
    if files is None:
        return StreamedModel(model=restore(run))
    dtype = DTYPES[run.config.precision]
    lazy = _Decoder(run.checkpoint, files, adapters, model, names, dtype)
    return StreamedModel(model=model.eval().requires_grad_(False), decoder=lazy)


class _Decoder:
    def __init__(
        self,
        checkpoint: Checkpoint,
        files: DecoderFiles,
        adapters: dict[str, Any],
        model: VisionChatModel,
        names_in_run: dict[int, str],
        dtype: torch.dtype,
    ) -> None:
        self._checkpoint, self._files, self._adapters, self._dtype = checkpoint, files, adapters, dtype
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names_in_run = names_in_run

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        name, name_in_run = self._names[id(tensor)], self._names_in_run[id(tensor)]
        if name_in_run in self._checkpoint.shapes:
            weight = self._checkpoint.weight(name_in_run)
        else:
            weight = self._files.read(name, tensor, self._dtype)
            if not is_unchanged(name_in_run, weight, self._checkpoint.content.frozen):
                raise ConfigError([other_weights(name_in_run, self._checkpoint)])
        layer = self._adapters.get(name)
        if layer is None:
            return weight
        base = layer.get_base_layer()
        placeholder, base.weight = base.weight, nn.Parameter(weight.float(), requires_grad=False)
        plain: Any = merged(layer)
        result: torch.Tensor = plain.weight.detach()
        base.weight = placeholder
        layer.merged_adapters.clear()  # so that it can be merged again
        return result


def _give_adapters_memory(model: VisionChatModel) -> None:
    """Adapters of layers on the meta device were made there; the checkpoint has their values."""
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta and ".lora_" in name:
            module, _, last = name.rpartition(".")
            setattr(model.get_submodule(module), last, nn.Parameter(torch.empty_like(parameter, device="cpu")))
