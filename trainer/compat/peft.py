"""Everything the trainer needs of peft that peft does not document. Run with 0.18.0 and 0.21.2.

injection    a list of targets matches name endings, so a regex names exactly the layers meant
parameters   LoraConfig.target_parameters adapts what is not a layer's weight, such as experts; since 0.17
merging      adapted layers are merged and replaced one by one, as peft's own `merge_and_unload` does; a layer that
             needs more (torch's attention block) has its own method
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

_INITS: dict[str, Any] = {"kaiming": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}


def inject(
    root: nn.Module,
    names: Sequence[str],
    parameters: Sequence[str] = (),
    *,
    rank: int,
    alpha: float,
    dropout: float,
    rslora: bool,
    dora: bool,
    init: str,
) -> None:
    """Adapt exactly the layers and parameters with these names, in place. Raises ValueError if peft cannot.

    Several parameters of one module become layers around each other, each the `base_layer` of the next.
    """
    import peft

    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # may be no integer: peft only divides it by the rank or its root
        lora_dropout=dropout,
        use_rslora=rslora,
        use_dora=dora,
        init_lora_weights=_INITS[init],
        target_modules="|".join(map(re.escape, names)),
        target_parameters=list(parameters) or None,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)  # it looks at each layer itself
        # 0.18 says it of modules with experts, whose parameters it adapts all the same
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        peft.inject_adapter_in_model(settings, root)


def adapted_layers(root: nn.Module) -> dict[str, Any]:
    """The layers in `root` that have an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in root.named_modules() if isinstance(module, LoraLayer)}


def merged(layer: Any) -> nn.Module:
    """The plain layer, with its adapter merged into its weights. Raises ValueError if that gives NaN or infinity."""
    if hasattr(layer, "unload_and_optionally_merge_module"):
        plain: nn.Module = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        return plain
    layer.merge(safe_merge=True)
    base: nn.Module = layer.get_base_layer()
    return base


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayers:
    """Layers of a model that have adapters of the same settings."""

    paths: tuple[str, ...]
    rank: int
    alpha: float
    dropout: float
    rslora: bool

    @property
    def scale(self) -> float:
        """What the low-rank update is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def adapter_key(path: str, name: str) -> str:
    """The key in adapter_model.safetensors. path: of a layer or module. name: of a tensor in it in the model."""
    without_adapter = name.replace(".default", "")
    if without_adapter.startswith("lora_magnitude_vector"):
        without_adapter = without_adapter.removesuffix(".weight")
    return f"base_model.model.{path}.{without_adapter}"


def write_adapter_config(
    folder: Path,
    base: str,
    groups: Sequence[AdapterLayers],
    *,
    dora: bool,
    modules_to_save: Sequence[str],
    ties_head: bool,
) -> None:
    """Write adapter_config.json. groups: the first one's settings are the file's own; others differ by pattern.

    modules_to_save: paths of modules that are in the file as a whole. ties_head: the embeddings are among them, and the
    head has the same weights.
    """
    import peft

    first, others = groups[0], groups[1:]
    per_scale = math.sqrt if first.rslora else float
    peft.LoraConfig(
        base_model_name_or_path=base,
        inference_mode=True,
        r=first.rank,
        lora_alpha=first.alpha,
        lora_dropout=first.dropout,
        use_rslora=first.rslora,
        use_dora=dora,
        target_modules=sorted(path for group in groups for path in group.paths),
        rank_pattern={re.escape(path): group.rank for group in others for path in group.paths},
        alpha_pattern={
            re.escape(path): group.scale * per_scale(group.rank) for group in others for path in group.paths
        },
        modules_to_save=sorted(modules_to_save) or None,
        ensure_weight_tying=ties_head,
    ).save_pretrained(str(folder))
