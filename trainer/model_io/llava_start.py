"""The model of a LLaVA folder that others published, for a run that begins with it.

transformers loads the decoder, so that its weights are read under every name and form that the library knows. Tower and
projector are read by name here, since the tower has only the layers that are used.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from dst.errors import ConfigError
from shards.format.manifest import BuildFacts
from trainer.compat.transformers import bare
from trainer.config.model import ModelConfig
from trainer.model.build_model import build_model
from trainer.model.decoder import RenamedWeights, build_decoder
from trainer.model.decoder_protocol import CausalDecoder
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.llava_folder import CONFIG, local_file
from trainer.model_io.safetensors_files import WeightFiles
from trainer.model_io.standard_parts import decoder_refusals

_PREFIX = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")


def load_llava(
    config: ModelConfig, facts: BuildFacts, *, dtype: torch.dtype, lazy_decoder: bool = False
) -> VisionChatModel:
    """The model at `config.init_from`, a LLaVA folder or hub id, for a run on the build with these facts.

    config: filled in by trainer.checkpoint.init_from, and checked by trainer.model.build_model.check_model. Raises
    ConfigError if the decoder cannot be loaded or is not as in LLaVA, TrainError if weights are missing or damaged.
    """
    name = str(config.init_from)
    with torch.device("meta"):  # its names alone are needed
        decoder = build_decoder(config.decoder, facts.tokenizer.num_embeddings, "causal", weights=False)
    if reasons := decoder_refusals(decoder):
        raise ConfigError([f"model.init_from: {name}: {'; '.join(reasons)}; choose another model"])
    renamed = RenamedWeights(name=name, key_mapping=decoder_names(decoder))
    model = build_model(config, facts, dtype=dtype, renamed=renamed, lazy_decoder=lazy_decoder)
    path = local_file(name, CONFIG)  # the weights are next to it, now that the decoder's were loaded
    assert path is not None
    _fill(model, path.parent)
    return model


def decoder_names(decoder: CausalDecoder) -> dict[str, str]:
    """From the names of LLaVA's weights, of old and new releases, to those of its decoder alone."""
    base, head = decoder.base_model_prefix, decoder.get_output_embeddings()
    assert isinstance(decoder, nn.Module)
    head_name = next(name for name, module in decoder.named_modules() if module is head)
    return {
        r"^(language_model\.)?lm_head\.": f"{head_name}.",
        r"^language_model\.model\.": f"{base}.",
        r"^model\.language_model\.": f"{base}.",
    }


def _fill(model: VisionChatModel, folder: Path) -> None:
    """Load tower and projector, of whatever release the names are; the tower's last layers and norm are not used."""
    weights = WeightFiles(folder)
    names = {_short(name): name for name in weights.names() if _PREFIX.match(name)}
    for module, prefix in ((model.encoder.tower.model, "vision_tower."), (model.projector, "multi_modal_projector.")):
        tensors = _stored(module)
        for own, tensor in tensors.items():
            stored = weights.read(names.get(prefix + own, prefix + own), shape=tensor.shape)
            with torch.no_grad():
                tensor.copy_(stored)


def _short(name: str) -> str:
    """A name without the levels that only some releases of transformers have."""
    name = name.removeprefix("model.")
    module, _, rest = name.partition(".")
    return f"{module}.{bare(rest)}"


def _stored(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of a part, by names of LLaVA."""
    return {bare(name): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
