"""The model: images through encoder and projector into their placeholders, then a causal decoder, then the loss.

Rules. A row's samples never see each other: positions restart with each sample, and that is what keeps them apart, so
no attention mask and no cache is passed. Logits exist only where the next token is trained on, a chunk at a time. All
parts run in every forward, on a blank image if there is none, so that ranks that share weights never wait in vain.

Shapes: B rows, T positions, N images, S side in pixels, P and Q tokens an image before and after the projector, H
hidden size, M trained tokens, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dst import IGNORE
from dst.errors import ConfigError
from shards.format.manifest import BuildFacts
from shards.loader import normalize
from shards.loader.fields import BatchFields
from trainer.attention.layout import build_layout
from trainer.compat.transformers import checkpoint_activations
from trainer.config.model import ModelConfig, check_model_values
from trainer.errors import TrainError
from trainer.model.decoder import attention_window, build_decoder, finish_logits, load_hf_config, max_positions
from trainer.model.decoder_protocol import Decoder
from trainer.model.encoders.registry import Encoder, build_encoder
from trainer.model.projectors import Projector, build_projector

LOGITS_AT_ONCE = 2**27
"""Most logits in memory: half a GiB in float32."""


class Loss(NamedTuple):
    """Sums, not means: only who knows all ranks and accumulation steps can divide."""

    total: torch.Tensor
    """float32 []: over the trained tokens"""
    tokens: torch.Tensor
    """int64 []: how many they are"""
    per_sample: torch.Tensor | None = None
    """float32 [samples], if asked for: the sum of each sample; rows in order, in a row by segment id"""
    per_sample_tokens: torch.Tensor | None = None
    """int64 [samples]: the trained tokens of each"""


class VisionChatModel(nn.Module):
    """encoder, projector and decoder are ordinary modules; the decoder is transformers' own."""

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        decoder: Decoder,
        *,
        image_id: int,
        attention: Literal["mmca", "causal"],
    ) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.decoder: Decoder = decoder
        self.image_id, self.image_tokens = image_id, projector.num_tokens
        self.attention = attention

    def forward(self, *, reduction: Literal["sum", "sample"] = "sum", **tensors: torch.Tensor) -> Loss:
        """The loss of a shards.loader.Batch, given its `tensors()`. `sample` adds the sums of every sample."""
        batch = BatchFields(**tensors)
        hidden_BTH = self.hidden_states(batch)
        targets = batch.labels[:, 1:]
        trained = targets != IGNORE
        losses_M = self._losses(hidden_BTH[:, :-1][trained], targets[trained])
        total, tokens = losses_M.sum(), trained.sum()
        if reduction == "sum":
            return Loss(total, tokens)
        return Loss(total, tokens, *_by_sample(losses_M.detach(), trained, batch.segment_ids))

    def hidden_states(self, batch: BatchFields[torch.Tensor]) -> torch.Tensor:
        """The decoder's last hidden states [B, T, H]."""
        embeddings = self.embed(batch.input_ids, batch.images, batch.image_slots)
        arguments = attention_arguments(
            self.attention, batch.input_ids == self.image_id, batch.segment_ids, batch.position_ids
        )
        hidden_BTH: torch.Tensor = self.decoder.base_model(inputs_embeds=embeddings, **arguments).last_hidden_state
        return hidden_BTH

    def logits(self, batch: BatchFields[torch.Tensor]) -> torch.Tensor:
        """All logits [B, T, V]: to compare models, not to train."""
        return self._head(self.hidden_states(batch))

    def embed(self, input_ids: torch.Tensor, images: torch.Tensor, image_slots: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, T, H] of tokens, with images in their placeholders' positions.

        Raises TrainError if images, slots and placeholders do not fit each other.
        """
        tokens_BTH: torch.Tensor = self.decoder.get_input_embeddings()(input_ids)
        places = self._places(input_ids, images, image_slots)
        if not len(images):
            side = self.encoder.image_size
            nothing = self.encode(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=input_ids.device))
            return tokens_BTH + nothing.sum().to(tokens_BTH.dtype) * 0
        features = self.encode(images).to(tokens_BTH.dtype).flatten(0, 1)
        return tokens_BTH.flatten(0, 1).index_copy(0, places, features).view_as(tokens_BTH)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images [N, 3, S, S] as the decoder takes them: [N, Q, H]."""
        dtype = next(self.encoder.parameters()).dtype
        pixels = normalize(images, self.encoder.mean, self.encoder.std, dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._encoder_learns()):
            features = self.encoder(pixels)
        embeddings_NQH: torch.Tensor = self.projector(features)
        return embeddings_NQH

    def train(self, mode: bool = True) -> VisionChatModel:
        """A frozen encoder stays as in evaluation: nothing in it is dropped."""
        super().train(mode)
        if not self._encoder_learns():
            self.encoder.eval()
        return self

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass instead of keeping them: slower, far less memory."""
        checkpoint_activations(self.decoder)
        self.encoder.checkpoint_activations()

    def _encoder_learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def _places(self, input_ids: torch.Tensor, images: torch.Tensor, image_slots: torch.Tensor) -> torch.Tensor:
        """Where image tokens go, in a row of all B * T positions."""
        side, wanted = self.encoder.image_size, len(images)
        if wanted and tuple(images.shape[1:]) != (3, side, side):
            raise TrainError(
                f"images are {list(images.shape[1:])}, but the encoder wants [3, {side}, {side}]; rebuild with "
                f"image: {{size: {side}}}, or choose another encoder"
            )
        rows, firsts = image_slots[:, :1], image_slots[:, 1:]
        places = rows * input_ids.shape[1] + firsts + torch.arange(self.image_tokens, device=input_ids.device)
        inside = (firsts >= 0) & (firsts + self.image_tokens <= input_ids.shape[1])
        is_image = (input_ids == self.image_id).flatten()
        fits = len(image_slots) == wanted and bool(inside.all()) and bool(is_image[places].all())
        if not fits or int(is_image.sum()) != places.numel():
            raise TrainError(
                f"{wanted} images at {len(image_slots)} places need {wanted * self.image_tokens} positions, "
                f"{self.image_tokens} an image, but the rows hold {int(is_image.sum())} positions with the "
                f"placeholder's id {self.image_id}; wanted the build that this model was made for"
            )
        return places.flatten()

    def _losses(self, hidden_MH: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """Cross entropy of each token, float32 [M], without ever holding all logits."""
        head = self.decoder.get_output_embeddings()
        chunks = math.ceil(len(hidden_MH) * self.decoder.config.vocab_size / LOGITS_AT_ONCE)
        chunks = _most_of_all_ranks(max(1, chunks), head, hidden_MH.device)
        losses = []
        for hidden, targets in zip(hidden_MH.tensor_split(chunks), targets_M.tensor_split(chunks), strict=True):
            if torch.is_grad_enabled():
                losses.append(checkpoint(self._chunk_losses, hidden, targets, use_reentrant=False))
            else:
                losses.append(self._chunk_losses(hidden, targets))
        return torch.cat(losses)

    def _chunk_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self._head(hidden).float(), targets, reduction="none")

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        return finish_logits(self.decoder.config, self.decoder.get_output_embeddings()(hidden))


def attention_arguments(
    attention: str, is_image: torch.Tensor, segment_ids: torch.Tensor, position_ids: torch.Tensor
) -> dict[str, Any]:
    """What a decoder is called with so that samples of a row stay apart; all [B, T].

    For causal attention transformers itself finds the samples by their restarting positions, for each of its kernels
    and with sliding windows, but only without a mask and a cache.
    """
    arguments: dict[str, Any] = {"position_ids": position_ids, "attention_mask": None, "use_cache": False}
    if attention == "mmca":
        arguments["mmca_layout"] = build_layout(is_image, segment_ids)
    return arguments


def build_model(
    config: ModelConfig,
    facts: BuildFacts,
    *,
    weights: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> VisionChatModel:
    """The model for the build with these facts; `weights=False` leaves all of it random.

    New weights depend on `seed` alone. The caller has run `check_model`, which says what of the config does not fit the
    build. Raises ConfigError if an encoder, projector or decoder cannot be built or loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = build_decoder(
            config.decoder, facts.tokenizer.num_embeddings, config.attention, weights=weights, dtype=dtype
        )
        encoder = build_encoder(config.encoder, weights=weights)
        projector = build_projector(
            config.projector,
            encoder_width=encoder.width,
            encoder_tokens=encoder.num_tokens,
            hidden_size=decoder.get_input_embeddings().weight.shape[1],
        )
    return VisionChatModel(
        encoder.to(dtype),
        projector.to(dtype),
        decoder,
        image_id=facts.tokenizer.image_id,
        attention=config.attention,
    )


def check_model(config: ModelConfig, facts: BuildFacts) -> list[str]:
    """Problems of the model itself and with the build, told without loading any weights."""
    problems = check_model_values(config)
    if problems:
        return problems

    def change(part: str, rebuild: str) -> str:  # the parts of a model to start with are as they are
        return f"rebuild with {rebuild}" if config.init_from else f"{part}, or rebuild with {rebuild}"

    try:
        hf_config = load_hf_config(config.decoder, facts.tokenizer.num_embeddings)
        limit, longest = max_positions(hf_config), facts.limits.max_length
        if limit is not None and longest > limit:
            problems.append(
                f"model.decoder: allows {limit} positions but this build has samples of up to {longest}; "
                + change("choose another decoder", f"limits: {{max_length: {limit}}}")
            )
        window = attention_window(hf_config)
        if config.attention == "mmca" and window is not None and longest > window:
            problems.append(
                f"model.attention: mmca is not defined for sliding windows; the decoder's is {window} positions but "
                f"this build has samples of up to {longest}; set model.attention: causal, "
                + change("choose another decoder", f"limits: {{max_length: {window}}}")
            )
    except ConfigError as error:
        problems += error.problems
    try:
        with torch.device("meta"):
            encoder = build_encoder(config.encoder, weights=False)
            projector = build_projector(
                config.projector, encoder_width=encoder.width, encoder_tokens=encoder.num_tokens, hidden_size=8
            )
    except ConfigError as error:
        return problems + error.problems
    side, got = facts.image.size, facts.image_tokens
    if encoder.image_size != side:
        problems.append(
            f"model.encoder: takes images of {encoder.image_size} pixels but this build's have {side}; "
            + change("choose another encoder", f"image: {{size: {encoder.image_size}}}")
        )
    wanted = projector.num_tokens
    if wanted != got:
        fix = f"set model.projector.num_queries: {got}" if config.projector.kind == "perceiver" else "use a perceiver"
        problems.append(
            f"model.projector: makes {wanted} tokens of an image but this build was compiled with {got}; "
            + change(fix, f"image_tokens: {wanted}")
        )
    return problems


def portable_config(config: ModelConfig, model: VisionChatModel) -> ModelConfig:
    """A config that builds the same architecture, random, without the folders and hubs its weights came from."""
    hf_config = model.decoder.config.to_dict()
    decoder = dataclasses.replace(config.decoder, name=None, preset=None, config=hf_config)
    return dataclasses.replace(config, init_from=None, encoder=model.encoder.portable, decoder=decoder)


def _by_sample(
    losses_M: torch.Tensor, trained: torch.Tensor, segment_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    samples_of_rows = segment_ids.amax(1).long()
    before = samples_of_rows.cumsum(0) - samples_of_rows
    rows, columns = trained.nonzero(as_tuple=True)
    sample = before[rows] + segment_ids[rows, columns + 1] - 1
    num_samples = int(samples_of_rows.sum())
    totals = losses_M.new_zeros(num_samples).index_add_(0, sample, losses_M)
    return totals, torch.bincount(sample, minlength=num_samples)


def _most_of_all_ranks(chunks: int, head: nn.Module, device: torch.device) -> int:
    """Where ranks share the head's weight out (ZeRO-3), each use of it is a step that all ranks take together."""
    if not hasattr(head.weight, "ds_id") or not torch.distributed.is_initialized():
        return chunks
    most = torch.tensor(chunks, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)
