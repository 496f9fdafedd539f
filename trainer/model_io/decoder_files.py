"""Weights of a decoder, read one by one from the files that a model's config names, without loading the decoder.

The rule: a tensor that is read here equals the one that trainer.model.decoder or trainer.model_io.load would load.
Where that is not certain, `find_decoder_files` finds nothing, and the caller loads the whole model: files that are not
safetensors, names that transformers changes while it loads, a head that is tied in the model and apart in the files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from dst.errors import ConfigError
from trainer.compat.transformers import loads_as_stored
from trainer.config.model import ModelConfig
from trainer.errors import TrainError
from trainer.model.decoder import mean_row
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.llava_folder import local_file
from trainer.model_io.llava_start import decoder_names
from trainer.model_io.record import INDEX, SINGLE, checked_files, is_export, read_record
from trainer.model_io.safetensors_files import WeightFiles
from trainer.model_io.standard_models import stored_names
from trainer.model_io.standard_parts import is_tied, own_tensors

_DECODER = "decoder."


class DecoderFiles:
    """Reads the decoder's tensors by our names."""

    def __init__(self, files: WeightFiles, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """names: our name -> that in the files. shapes: by the names in the files."""
        self._files, self._names, self._shapes = files, names, shapes

    def read(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The tensor with the shape of `like`; rows of tokens that a build added are the mean of the others.

        Raises TrainError if the file is damaged.
        """
        stored_name = self._names[name]
        stored = self._files.read(stored_name, shape=self._shapes[stored_name]).to(dtype)
        if (num_new := len(like) - len(stored)) == 0:
            return stored
        return torch.cat([stored, mean_row(stored).expand(num_new, *stored.shape[1:])])


def find_decoder_files(config: ModelConfig, model: VisionChatModel) -> DecoderFiles | None:
    """The files of a decoder that was built without its weights; None if they cannot be read one by one."""
    folder, decoder = _folder(config), model.get_submodule("decoder")
    if folder is None or len(decoder.state_dict()) > len(list(decoder.named_parameters(remove_duplicate=False))):
        return None  # there are buffers to load as well
    try:
        files = WeightFiles(folder, checked_files(folder, read_record(folder)) if is_export(folder) else None)
        shapes = files.shapes()
    except TrainError:  # the loader of whole models reports it
        return None
    names = _names(config, model, shapes)
    tables = (model.decoder.get_input_embeddings(), model.decoder.get_output_embeddings())
    of_tables = {id(parameter) for table in tables for parameter in table.parameters()}
    for name, tensor in own_tensors(model):
        if name.startswith(_DECODER):
            stored, shape = shapes.get(names.get(name, "")), tuple(tensor.shape)
            may_grow = id(tensor) in of_tables and stored is not None and stored[1:] == shape[1:] and stored < shape
            if stored != shape and not may_grow:
                return None
    head_name = next(name for name, module in decoder.named_modules() if module is tables[1])
    if is_tied(model.decoder) and f"{_DECODER}{head_name}.weight" in names:
        return None
    return DecoderFiles(files, names, shapes)


def _folder(config: ModelConfig) -> Path | None:
    """The folder of the weights, if they are safetensors."""
    name = config.init_from or config.decoder.name
    if name is None:
        return None
    try:
        files = [path for file in (INDEX, SINGLE) if (path := local_file(name, file)) is not None]
    except ConfigError:
        return None
    return files[0].parent if len(files) == 1 else None


def _names(config: ModelConfig, model: VisionChatModel, stored: Collection[str]) -> dict[str, str]:
    """Our name of each tensor of the decoder in the files -> its name there; empty if transformers changes tensors."""
    start = config.init_from
    if start is not None and is_export(start):
        changed = stored_names(read_record(Path(start)).form, model)
        own = {name: changed.get(name, name) for name, _ in own_tensors(model)}
        return {name: theirs for name, theirs in own.items() if theirs in stored}
    if not loads_as_stored(model.decoder):
        return {}
    changes = decoder_names(model.decoder) if start is not None else {}
    return {f"{_DECODER}{_renamed(name, changes)}": name for name in stored}


def _renamed(name: str, changes: Mapping[str, str]) -> str:
    """The name after the first change, a regex and its replacement, that fits it."""
    for pattern, replacement in changes.items():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name
