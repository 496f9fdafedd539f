"""Everything the trainer needs of peft that peft does not document. Run with 0.18.0 and 0.21.2.

injection    a list of targets matches name endings, so a regex names exactly the layers meant
merging      adapted layers are merged and replaced one by one, as peft's own `merge_and_unload` does; a layer that
             needs more (torch's attention block) has its own method
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

_INITS: dict[str, Any] = {"kaiming": True, "gaussian": "gaussian", "orthogonal": "orthogonal"}


def inject(
    root: nn.Module,
    names: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    rslora: bool,
    dora: bool,
    init: str,
) -> None:
    """Adapt exactly the layers with these names, in place. Raises ValueError if peft cannot adapt one of them."""
    import peft

    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # may be no integer: peft only divides it by the rank or its root
        lora_dropout=dropout,
        use_rslora=rslora,
        use_dora=dora,
        init_lora_weights=_INITS[init],
        target_modules="|".join(map(re.escape, names)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)  # it looks at each layer itself
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
