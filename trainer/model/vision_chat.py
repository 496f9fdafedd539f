"""The model: images pass through encoder and projector into their placeholders, then a causal decoder, then the loss.

Rules
- Samples that share a sequence never see each other. Positions restart with each sample, which keeps them apart, so
  neither an attention mask nor a cache is passed.
- A branch of a sample sees the common beginning and itself, and the first token of each branch is predicted from the
  last token of the beginning. So losses and gradients are those of the branches as separate samples.
- Logits are computed only where the next token is trained on, a chunk at a time.
- All parts run in every forward, on a blank image if there is none. With ZeRO-3 each part's weights are gathered from
  all ranks, so a rank that skipped a part would leave the others waiting.

Shapes: B sequences, T tokens, N images, S side in pixels, P and Q tokens per image before and after the projector, H
hidden size, M trained tokens, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dst import IGNORE
from dst.errors import ConfigError
from shards.loader import normalize
from shards.loader.fields import BatchFields
from trainer.attention.layout import build_layout
from trainer.compat.transformers import checkpoint_activations
from trainer.errors import TrainError
from trainer.model.decoder_branches import prepare_for_branches
from trainer.model.decoder_checks import mixing, separates_samples
from trainer.model.decoder_logits import finish_logits
from trainer.model.decoder_protocol import CausalDecoder, takes_positions
from trainer.model.encoders.registry import Encoder, shape_of
from trainer.model.projectors import Projector

LOGITS_AT_ONCE = 2**27
"""Most logits that are in memory together: half a GiB in float32"""


class Loss(NamedTuple):
    """Sums, not means: only the training loop knows the tokens of all ranks and accumulation steps."""

    total: torch.Tensor
    """float32 []: over the trained tokens"""
    tokens: torch.Tensor
    """int64 []: number of trained tokens"""
    per_sample: torch.Tensor | None = None
    """float32 [samples], with reduction="sample": the sum of each sample; by sequence, then by segment id"""
    per_sample_tokens: torch.Tensor | None = None
    """int64 [samples], with reduction="sample": the trained tokens of each"""


class VisionChatModel(nn.Module):
    """A vision encoder, a projector and a decoder of transformers; all three are ordinary submodules."""

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        decoder: CausalDecoder,
        *,
        image_id: int,
        attention: Literal["mmca", "causal"],
    ) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.decoder: CausalDecoder = decoder
        self.image_id, self.image_tokens = image_id, projector.num_tokens
        self.hidden_size = int(decoder.get_input_embeddings().weight.shape[1])
        self.attention = attention
        self.expects_branches = False
        self.modules_to_save: tuple[str, ...] = ()
        """Modules that are trained in full next to LoRA adapters, see trainer.model.lora"""
        self._takes_positions = takes_positions(decoder)

    def forward(self, *, reduction: Literal["sum", "sample"] = "sum", **tensors: torch.Tensor) -> Loss:
        """The loss of a shards.loader.Batch, given its `tensors()`. reduction: sample adds the sums of each sample."""
        batch = BatchFields(**tensors)
        hidden_BTH = self.hidden_states(batch)
        rows_M, columns_M = (batch.labels != IGNORE).nonzero(as_tuple=True)
        from_M = self._predicted_from(batch)[rows_M, columns_M]
        losses_M = self._losses(hidden_BTH[rows_M, from_M], batch.labels[rows_M, columns_M])
        total, tokens = losses_M.sum(), (batch.labels != IGNORE).sum()
        if reduction == "sum":
            return Loss(total, tokens)
        return Loss(total, tokens, *_by_sample(losses_M.detach(), rows_M, columns_M, batch.segment_ids))

    def hidden_states(self, batch: BatchFields[torch.Tensor]) -> torch.Tensor:
        """The decoder's last hidden states [B, T, H]."""
        embeddings = self.embed(batch.input_ids, batch.images, batch.image_slots)
        arguments = self._attention_arguments(batch)
        hidden_BTH: torch.Tensor = self.decoder.base_model(inputs_embeds=embeddings, **arguments).last_hidden_state
        return hidden_BTH

    def expect_packed(self) -> None:
        """Prepare for sequences of several samples. Raises ConfigError if the decoder would let them see each other."""
        if not self.separates_samples:
            raise ConfigError(
                [f"batch.packed: {mixing(self.decoder)}; set batch.packed: false, or choose another decoder"]
            )

    def expect_branches(self) -> None:
        """Prepare for batches of samples with branches. Raises ConfigError if the decoder cannot attend to them."""
        if not self.expects_branches:
            prepare_for_branches(self.decoder, self.attention)
            self.expects_branches = True

    @functools.cached_property
    def separates_samples(self) -> bool:
        """Whether samples may share a sequence; tried on a few tokens if nobody has set it."""
        return separates_samples(self.decoder, with_layout=self.uses_layout)

    @property
    def uses_layout(self) -> bool:
        """Whether the decoder takes an `attention_layout` in every forward, instead of a mask."""
        return self.attention == "mmca" or self.expects_branches

    def attended_as_images(self, is_image: torch.Tensor) -> torch.Tensor:
        """Which positions a layout calls images, from those that are: to causal attention all tokens are alike."""
        return is_image if self.attention == "mmca" else torch.zeros_like(is_image)

    def logits(self, batch: BatchFields[torch.Tensor]) -> torch.Tensor:
        """All logits [B, T, V]; to compare models, not to train."""
        return self._head(self.hidden_states(batch))

    def embed(self, input_ids: torch.Tensor, images: torch.Tensor, image_slots: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, T, H] of tokens, with those of images in the positions of their placeholders.

        Raises TrainError if images, slots and placeholders do not match.
        """
        tokens_BTH: torch.Tensor = self.decoder.get_input_embeddings()(input_ids)
        image_positions = self.image_positions(input_ids, images, image_slots)
        if not len(images):
            side = self.encoder.image_size
            blank = self.encode(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=input_ids.device))
            return tokens_BTH + blank.sum().to(tokens_BTH.dtype) * 0
        features = self.encode(images).to(tokens_BTH.dtype).flatten(0, 1)
        return tokens_BTH.flatten(0, 1).index_copy(0, image_positions, features).view_as(tokens_BTH)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, Q, H] of uint8 images [N, 3, S, S].

        Raises TrainError if encoder or projector make another shape than they say.
        """
        dtype = next(self.encoder.parameters()).dtype
        return self.encode_pixels(normalize(images, self.encoder.mean, self.encoder.std, dtype))

    def encode_pixels(self, pixels_N3SS: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, Q, H] of normalised pixels of the encoder's type. Raises as `encode` does."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_encoder()):
            features = self.encoder(pixels_N3SS)
        embeddings_NQH: torch.Tensor = self.projector(features)
        expected = [len(pixels_N3SS), self.image_tokens, self.hidden_size]
        if (shape := shape_of(embeddings_NQH)) != expected:
            raise TrainError(
                f"model.projector.kind: {type(self.projector).__name__} made {shape} of {expected[0]} images; expected "
                f"{expected}: the images, its num_tokens, and the decoder's width"
            )
        return embeddings_NQH

    def train(self, mode: bool = True) -> VisionChatModel:
        """As of any module, but a frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        if not self._trains_encoder():
            self.encoder.eval()
        return self

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: slower, far less memory."""
        checkpoint_activations(self.decoder)
        self.encoder.checkpoint_activations()

    def _attention_arguments(self, batch: BatchFields[torch.Tensor]) -> dict[str, Any]:
        """The decoder's arguments that keep samples and branches apart.

        For causal attention without branches transformers finds the samples by their restarting positions, for each of
        its kernels and with sliding windows, but only if it gets neither a mask nor a cache.
        """
        arguments: dict[str, Any] = {"attention_mask": None, "use_cache": False}
        if self._takes_positions:
            arguments["position_ids"] = batch.position_ids
        if not self.separates_samples and bool((batch.segment_ids > 1).any()):
            raise TrainError(f"a sequence has several samples, but {mixing(self.decoder)}; set batch.packed: false")
        if not self.expects_branches and batch.branch_ids.any():
            raise TrainError("a batch has samples with branches; call expect_branches() before the first forward")
        if self.uses_layout:
            is_image = self.attended_as_images(batch.input_ids == self.image_id)
            arguments["attention_layout"] = build_layout(is_image, batch.segment_ids, batch.branch_ids)
        return arguments

    def _predicted_from(self, batch: BatchFields[torch.Tensor]) -> torch.Tensor:
        """int64 [B, T]: the token before each one in its record."""
        columns = torch.arange(batch.labels.shape[1], device=batch.labels.device)
        before = (columns - 1).expand_as(batch.labels)
        if not self.expects_branches:
            return before
        branches = batch.branch_ids
        is_first = (branches != branches.roll(1, 1)) & (branches > 1)
        starts = torch.where(batch.position_ids == 0, columns, 0).cummax(1).values
        return torch.where(is_first, starts + batch.position_ids - 1, before)

    def _trains_encoder(self) -> bool:
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def image_positions(self, input_ids: torch.Tensor, images: torch.Tensor, image_slots: torch.Tensor) -> torch.Tensor:
        """Indices [N * Q] of the images' positions among all B * T positions. Raises as `embed` does."""
        side, num_images = self.encoder.image_size, len(images)
        if num_images and tuple(images.shape[1:]) != (3, side, side):
            raise TrainError(
                f"images are {list(images.shape[1:])}, but the encoder takes [3, {side}, {side}]; rebuild with "
                f"image: {{size: {side}}}, or choose another encoder"
            )
        rows, firsts = image_slots[:, :1], image_slots[:, 1:]
        indices = rows * input_ids.shape[1] + firsts + torch.arange(self.image_tokens, device=input_ids.device)
        is_inside = (firsts >= 0) & (firsts + self.image_tokens <= input_ids.shape[1])
        is_image = (input_ids == self.image_id).flatten()
        fits = len(image_slots) == num_images and bool(is_inside.all()) and bool(is_image[indices].all())
        if not fits or int(is_image.sum()) != indices.numel():
            raise TrainError(
                f"{num_images} images at {len(image_slots)} slots need {num_images * self.image_tokens} positions, "
                f"{self.image_tokens} per image, but the sequences have {int(is_image.sum())} positions with the "
                f"placeholder's id {self.image_id}; expected the build that this model was made for"
            )
        return indices.flatten()

    def _losses(self, hidden_MH: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """Cross entropy of each token, float32 [M], without all logits in memory at once."""
        head = self.decoder.get_output_embeddings()
        chunks = math.ceil(len(hidden_MH) * self.decoder.config.vocab_size / LOGITS_AT_ONCE)
        chunks = _maximum_over_ranks(max(1, chunks), head, hidden_MH.device)
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


def _by_sample(
    losses_M: torch.Tensor, rows_M: torch.Tensor, columns_M: torch.Tensor, segment_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of losses and numbers of trained tokens, both [samples]. rows, columns: where the trained tokens are."""
    samples_of_rows = segment_ids.amax(1).long()
    before = samples_of_rows.cumsum(0) - samples_of_rows
    sample = before[rows_M] + segment_ids[rows_M, columns_M] - 1
    num_samples = int(samples_of_rows.sum())
    totals = losses_M.new_zeros(num_samples).index_add_(0, sample, losses_M)
    return totals, torch.bincount(sample, minlength=num_samples)


def _maximum_over_ranks(chunks: int, head: nn.Module, device: torch.device) -> int:
    """The most chunks of any rank. With ZeRO-3 ranks gather the head's weight together, so they need equal numbers."""
    if not hasattr(head.weight, "ds_id") or not torch.distributed.is_initialized():
        return chunks
    maximum = torch.tensor(chunks, device=device)
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
    return int(maximum)
