"""QWen-VL's vision tower: a ViT-bigG without a class token, and a resampler that turns any grid into 256 tokens.

Parameter names are those of a QWen-VL checkpoint in `transformer.visual.`, so the file that tools/extract_qwen_vl.py
writes loads strictly. The tower was trained at 224 px and is used at 448: both tables of position embeddings are for
16 x 16 patches and are interpolated (bicubic) to the actual grid. QWen-VL: https://arxiv.org/abs/2308.12966; the sizes
are those of the released checkpoint.

Shapes: N images, P patches, Q queries, H heads, W width.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dst.common.config import build
from dst.common.config_class import config_class
from dst.errors import ConfigError
from trainer.config.model import EncoderConfig
from trainer.model.encoders.base import CLIP_MEAN, CLIP_STD, Tower

_EPS = 1e-6


@config_class
class QwenVlSizes:
    image_size: int = 448
    """Side of the image in pixels; a multiple of patch_size."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    width: int = 1664
    """Width of a patch's features."""
    layers: int = 48
    """Transformer layers."""
    heads: int = 16
    """Attention heads of a layer; must divide the width."""
    mlp_ratio: float = 4.9231
    """Width of a layer's MLP, as a multiple of width."""
    output_dim: int = 4096
    """Width of the output tokens; a multiple of head_width."""
    n_queries: int = 256
    """Tokens per image; a square number."""
    head_width: int = 128
    """Width of one head of the resampler."""
    positions: int = 256
    """Entries of the table of position embeddings; a square number."""


def qwen_vl_tower(config: EncoderConfig, weights: bool) -> Tower:
    """QWen-VL's tower. Raises ConfigError for inconsistent sizes, or weights of another tower."""
    sizes = _sizes(config)
    module = QwenVisual(sizes)
    if weights and config.weights is not None:
        _load(module, Path(config.weights))
    return Tower(
        module=module,
        image_size=sizes.image_size,
        width=sizes.output_dim,
        num_tokens=sizes.n_queries,
        mean=config.mean or CLIP_MEAN,
        std=config.std or CLIP_STD,
        portable=dataclasses.replace(config, weights=None, config=dataclasses.asdict(sizes)),
    )


class QwenVisual(nn.Module):
    """[N, 3, S, S] -> [N, Q, output_dim]"""

    def __init__(self, sizes: QwenVlSizes) -> None:
        super().__init__()
        width, output = sizes.width, sizes.output_dim
        self.conv1 = nn.Conv2d(3, width, sizes.patch_size, sizes.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.positions, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width, eps=_EPS)
        self.transformer = Layers(sizes)
        self.attn_pool = Resampler(sizes)
        self.ln_post = nn.LayerNorm(output, eps=_EPS)
        self.proj = nn.Parameter(torch.randn(output, output) * output**-0.5)

    def checkpoint_activations(self) -> None:
        self.transformer.checkpoints = True

    def forward(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        patches_NPW = self.conv1(pixels_N3SS).flatten(2).transpose(1, 2)
        patches_NPW = patches_NPW + at_grid(self.positional_embedding, patches_NPW.shape[1])
        pooled_NQW = self.attn_pool(self.transformer(self.ln_pre(patches_NPW)))
        out_NQW: torch.Tensor = self.ln_post(pooled_NQW) @ self.proj
        return out_NQW


class Layers(nn.Module):
    def __init__(self, sizes: QwenVlSizes) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.checkpoints = False

    def forward(self, x_NPW: torch.Tensor) -> torch.Tensor:
        for layer in self.resblocks:
            recompute = self.checkpoints and self.training
            x_NPW = checkpoint(layer, x_NPW, use_reentrant=False) if recompute else layer(x_NPW)
        return x_NPW


class Layer(nn.Module):
    def __init__(self, sizes: QwenVlSizes) -> None:
        super().__init__()
        width, inner = sizes.width, int(sizes.width * sizes.mlp_ratio)
        self.ln_1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = SelfAttention(width, sizes.heads)
        self.ln_2 = nn.LayerNorm(width, eps=_EPS)
        layers = {"c_fc": nn.Linear(width, inner), "gelu": nn.GELU(), "c_proj": nn.Linear(inner, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x_NPW: torch.Tensor) -> torch.Tensor:
        x_NPW = x_NPW + self.attn(self.ln_1(x_NPW))
        out_NPW: torch.Tensor = x_NPW + self.mlp(self.ln_2(x_NPW))
        return out_NPW


class SelfAttention(nn.Module):
    """Self-attention. In the checkpoint's in_proj, a head's query, key and value are adjacent."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_NPW: torch.Tensor) -> torch.Tensor:
        by_head_NHPD = self.in_proj(x_NPW).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key, value = by_head_NHPD.chunk(3, dim=-1)
        attended_NPW = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        out_NPW: torch.Tensor = self.out_proj(attended_NPW)
        return out_NPW


class Resampler(nn.Module):
    """Trained queries at fixed positions read the patches through one cross-attention."""

    pos_embed: torch.Tensor

    def __init__(self, sizes: QwenVlSizes) -> None:
        super().__init__()
        width = sizes.output_dim
        self.register_buffer("pos_embed", sine_table(math.isqrt(sizes.n_queries), width))
        self.query = nn.Parameter(torch.randn(sizes.n_queries, width) * 0.02)
        self.kv_proj = nn.Linear(sizes.width, width, bias=False) if sizes.width != width else nn.Identity()
        self.attn = nn.MultiheadAttention(width, width // sizes.head_width, batch_first=True)
        self.ln_q = nn.LayerNorm(width, eps=_EPS)
        self.ln_kv = nn.LayerNorm(width, eps=_EPS)

    def forward(self, patches_NPW: torch.Tensor) -> torch.Tensor:
        values = self.ln_kv(self.kv_proj(patches_NPW))
        keys = values + at_grid(self.pos_embed, values.shape[1])
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(values), -1, -1)
        attended_NQW: torch.Tensor = self.attn(queries, keys, values, need_weights=False)[0]
        return attended_NQW


def at_grid(table_PW: torch.Tensor, num_patches: int) -> torch.Tensor:
    """A square table of position embeddings, interpolated to a square grid of `num_patches`."""
    if len(table_PW) == num_patches:
        return table_PW
    old, new = math.isqrt(len(table_PW)), math.isqrt(num_patches)
    grid = table_PW.float().view(1, old, old, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2).to(table_PW.dtype)


def sine_table(side: int, width: int) -> torch.Tensor:
    """Position embeddings [side * side, width]: half for the column, half for the row; sines, then cosines."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = line[None].expand(side, -1, -1)
    rows = line[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1).float()


def _sizes(config: EncoderConfig) -> QwenVlSizes:
    """The released sizes, overridden by those next to the weights, overridden by those in the config."""
    path = "model.encoder.config"
    tree = dict(config.config)
    if config.weights is not None:
        sizes_file = Path(config.weights).with_suffix(".json")
        if sizes_file.is_file():
            tree = {**json.loads(sizes_file.read_text("utf-8"))["sizes"], **tree}
    if config.image_size is not None:
        tree["image_size"] = config.image_size
    sizes, problems = build(QwenVlSizes, tree, path)
    if sizes is None:
        raise ConfigError(problems)
    for name, total, divisor in (
        ("patch_size", sizes.image_size, sizes.patch_size),
        ("heads", sizes.width, sizes.heads),
        ("head_width", sizes.output_dim, sizes.head_width),
    ):
        if divisor < 1 or total < 1 or total % divisor:
            problems.append(f"{path}.{name}: got {divisor}; expected a divisor of {total}")
    problems += [
        f"{path}.{name}: got {value}; expected a square number"
        for name in ("n_queries", "positions")
        if (value := getattr(sizes, name)) < 1 or math.isqrt(value) ** 2 != value
    ]
    if sizes.output_dim % 4:
        problems.append(f"{path}.output_dim: got {sizes.output_dim}; expected a multiple of 4")
    if problems:
        raise ConfigError(problems)
    return sizes


def _load(module: QwenVisual, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    step = "write it with tools/extract_qwen_vl.py"
    if not path.is_file():
        raise ConfigError([f"model.encoder.weights: no file {path}; {step}"])
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ConfigError([f"model.encoder.weights: {path} is not a safetensors file ({error}); {step}"]) from None
    expected = module.state_dict()
    problems = [f"lacks {name}" for name in expected if name not in tensors]
    problems += [f"has {name}, which the tower does not" for name in tensors if name not in expected]
    problems += [
        f"{name} is {list(tensors[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConfigError([f"model.encoder.weights: {path} does not fit: {'; '.join(problems[:5])}{more}; {step}"])
    module.load_state_dict(tensors)
