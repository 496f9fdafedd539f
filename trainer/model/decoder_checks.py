"""Whether a decoder computes what training assumes, tried on a few tokens before training.

The assumptions, each compared with the library's own call, `model(input_ids)` of each sample alone:
- logits are the head applied to the base model's last hidden states, and embeddings of tokens stand for their ids
- a token depends on no later one, on no padding and on no other sequence of the batch
- with MMCA every layer attends through it, and to a text without images as the decoder's own attention does, with the
  same parameters; an image depends on itself alone
- samples in one sequence do not depend on each other; a decoder that lacks this alone trains with a sequence for each

What depends on what is read from gradients, which are exactly 0 where there is no dependence, in every precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from dst.errors import ConfigError
from trainer.attention.layout import AttentionLayout, build_layout
from trainer.attention.mmca import MMCA
from trainer.compat.transformers import LIBRARY_ERRORS, reason
from trainer.config.model import DecoderConfig
from trainer.model.decoder_logits import finish_logits, nearly_equal
from trainer.model.decoder_protocol import CausalDecoder, HfConfig, decoder_title, takes_positions
from trainer.model.decoder_sizes import size_problem

LENGTH = 6
"""Tokens of each of the two samples"""


class _Tried(NamedTuple):
    """The two samples, as training computes them."""

    alone: torch.Tensor
    """[2, LENGTH, V]: logits of each in a sequence of its own, with padding behind it"""
    packed: torch.Tensor
    """[2, LENGTH, V]: logits of both in one sequence"""
    leak: str
    """What a token depends on and should not, apart from another sample of its sequence; empty if nothing"""
    mixes: bool
    """Whether the second sample of the sequence depends on the first"""


def check_decoder(model: CausalDecoder, config: DecoderConfig, attention: str) -> bool:
    """Whether samples may share a sequence. Raises ConfigError unless training with one sample in each is right.

    attention: mmca or causal; the decoder's is set to it. On the meta device there is nothing to try: True.
    """
    head, name = model.get_output_embeddings(), type(model).__name__
    if not isinstance(head, nn.Module):
        raise ConfigError(
            [f"model.decoder: {decoder_title(config)} has no output head; expected a causal language model"]
        )
    if not hasattr(model, model.base_model_prefix):
        raise ConfigError(
            [f"model.decoder: {name} does not name its base model, which computes hidden states; {_OTHER}"]
        )
    if head.weight.is_meta:
        return True
    ids = _ids(model.config)
    kernel = "eager" if attention == "mmca" else config.portable_attn_implementation
    with _evaluating(model):
        model.set_attn_implementation(kernel)
        with _explained(config, model):
            own = model(input_ids=ids, use_cache=False).logits
        if attention == "mmca":
            tried = _try_mmca(model, config, ids)
        else:
            try:
                tried = _try(model, ids, {})
            except LIBRARY_ERRORS as error:
                raise ConfigError(
                    [f"model.decoder: {name} takes no images in place of tokens: {reason(error)}; {_OTHER}"]
                ) from error
        if tried.leak:
            where, change = ("attention", _CAUSAL) if attention == "mmca" else ("decoder", _OTHER)
            raise ConfigError([f"model.{where}: in {name} a token depends on {tried.leak}; {change}"])
        if not nearly_equal(tried.alone, own):
            raise ConfigError([_difference(model, ids, own, attention)])
        if unused := unused_parameters(model, own, tried.alone):
            if attention == "mmca":
                model.set_attn_implementation(kernel)
            if attention == "causal" or unused_parameters(model, own, _try(model, ids, {}).alone):
                raise ConfigError([_reads_ids(name, unused)])
            raise ConfigError([f"model.attention: mmca would leave {unused} of {name} untrained; {_CAUSAL}"])
        model.set_attn_implementation(MMCA.name if attention == "mmca" else config.attn_implementation)
    return not tried.mixes and nearly_equal(tried.packed, own)


def separates_samples(model: CausalDecoder, *, with_layout: bool) -> bool:
    """Whether samples may share a sequence, for a decoder whose attention is set, wherever it is.

    with_layout: whether that attention takes a layout, as MMCA and causal attention with branches do.
    """
    embeddings = model.get_input_embeddings().weight
    if embeddings.is_meta:
        return True
    ids = _ids(model.config).to(embeddings.device)
    with _evaluating(model):
        tried = _try(model, ids, _layout() if with_layout else {})
    return not tried.mixes and nearly_equal(tried.packed, tried.alone)


def mixing(model: CausalDecoder) -> str:
    """For errors: why samples may not share a sequence."""
    return f"{type(model).__name__} lets samples that share a sequence see each other"


def unused_parameters(model: CausalDecoder, own: torch.Tensor, tried: torch.Tensor) -> str:
    """Names of parameters that the library's own output depends on and this one does not; empty if there are none."""
    unused = _used(own) - _used(tried) - {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    names = [name for name, parameter in model.base_model.named_parameters() if id(parameter) in unused]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


_OTHER = "choose another decoder"
_CAUSAL = "choose another decoder, or set model.attention: causal"
_IMAGES = (1, 2)
"""Positions of images in the last sequence"""


def _ids(hf_config: HfConfig) -> torch.Tensor:
    """Token ids [2, LENGTH] of two samples, without padding's, whose embedding may be 0."""
    padding = getattr(hf_config, "pad_token_id", None)
    ids = [token for token in range(hf_config.vocab_size) if token != padding]
    return torch.tensor([ids[len(ids) * number // (2 * LENGTH)] for number in range(2 * LENGTH)]).view(2, LENGTH)


def _try(model: CausalDecoder, ids: torch.Tensor, arguments: dict[str, Any]) -> _Tried:
    """Compute four sequences: each sample with padding behind it, both, and the first with images in two positions.

    arguments: those of the attention, as `_layout` makes them for MMCA.
    """
    padding, counted = torch.zeros_like(ids[0]), torch.arange(LENGTH, device=ids.device)
    sequences = [torch.cat([ids[0], padding]), torch.cat([ids[1], padding]), ids.flatten()]
    positions = [torch.cat([counted, padding])] * 2 + [counted.repeat(2)]
    sequences.append(sequences[0])
    positions.append(positions[0])
    embedded = model.get_input_embeddings()(torch.stack(sequences)).detach()
    embedded[3, list(_IMAGES)] = embedded[:2, :LENGTH].mean((0, 1))  # of no token
    leaf = embedded.requires_grad_()
    embedded = leaf.clone()  # some models change their input in place
    is_mmca = "attention_layout" in arguments
    arguments = {
        key: value.to(ids.device) if isinstance(value, AttentionLayout) else value for key, value in arguments.items()
    }
    if takes_positions(model):
        arguments = {**arguments, "position_ids": torch.stack(positions)}
    hidden = model.base_model(
        inputs_embeds=embedded, attention_mask=None, use_cache=False, **arguments
    ).last_hidden_state
    logits = finish_logits(model.config, model.get_output_embeddings()(hidden))
    middle = LENGTH // 2
    watched = [hidden[0, :middle], hidden[2, LENGTH : LENGTH + middle]]
    watched += [hidden[3, _IMAGES[1]]] if is_mmca else []
    (gradient,) = torch.autograd.grad(
        [(part.float() * torch.linspace(1, 2, part.shape[-1], device=part.device)).sum() for part in watched],
        leaf,
        retain_graph=True,
    )
    reached = gradient.ne(0).any(-1)
    leak = ""
    if reached[0, middle:].any() or reached[2, LENGTH + middle :].any():
        leak = "tokens behind it"
    elif reached[1].any():
        leak = "another sequence of its batch"
    elif is_mmca and (reached[3, : _IMAGES[1]].any() or reached[3, _IMAGES[1] + 1 :].any()):
        leak = "tokens before it although it is an image, which MMCA attention lets attend to itself alone"
    alone, packed = logits[:2, :LENGTH], logits[2].view(2, LENGTH, -1)
    return _Tried(alone=alone, packed=packed, leak=leak, mixes=bool(reached[2, :LENGTH].any()))


def _try_mmca(model: CausalDecoder, config: DecoderConfig, ids: torch.Tensor) -> _Tried:
    """The same with MMCA. Raises ConfigError unless every layer attends through it."""
    MMCA.register()
    try:
        model.set_attn_implementation(MMCA.name)
        with MMCA.counted() as calls:
            tried = _try(model, ids, _layout())
    except LIBRARY_ERRORS as error:
        raise ConfigError(
            [f"model.attention: {decoder_title(config)} cannot do mmca: {reason(error)}; {_CAUSAL}"]
        ) from error
    num_layers, name = model.config.num_hidden_layers, type(model).__name__
    if len(calls) != num_layers:
        raise ConfigError(
            [
                f"model.attention: {name} attends {len(calls)} times through transformers' attention interface, which "
                f"mmca needs, and has {num_layers} layers; expected once in each; {_CAUSAL}"
            ]
        )
    return tried


def _layout() -> dict[str, Any]:
    """MMCA's argument for the sequences that `_try` computes."""
    one, two = [1] * LENGTH, [2] * LENGTH
    segment_ids = torch.tensor([one + [0] * LENGTH] * 2 + [one + two] + [one + [0] * LENGTH])
    is_image = torch.zeros_like(segment_ids, dtype=torch.bool)
    is_image[3, list(_IMAGES)] = True
    return {"attention_layout": build_layout(is_image, segment_ids)}


def _difference(model: CausalDecoder, ids: torch.Tensor, own: torch.Tensor, attention: str) -> str:
    """Why the logits are not those of the library's own call."""
    name = type(model).__name__
    embedded = model.get_input_embeddings()(ids)
    with torch.no_grad():
        try:
            by_embeddings = model(inputs_embeds=embedded, use_cache=False).logits
        except LIBRARY_ERRORS:
            by_embeddings = None
        if attention == "mmca":
            return (
                f"model.attention: {name} adds to its attention what mmca does not define: texts without images get "
                f"other logits; {_CAUSAL}"
            )
        if by_embeddings is None or not nearly_equal(by_embeddings, own):
            return _reads_ids(name)
        hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        if not nearly_equal(finish_logits(model.config, model.get_output_embeddings()(hidden)), own):
            return (
                f"model.decoder: {name} computes its logits in another way than its head and known scalings do; "
                f"{_OTHER}"
            )
    return f"model.decoder: {name} computes other logits if padding follows a sample; {_OTHER}"


def _reads_ids(name: str, parameters: str = "") -> str:
    where = f" ({parameters})" if parameters else ""
    return (
        f"model.decoder: {name} reads the ids of tokens in its layers as well{where}, and images have no ids of their "
        f"own; {_OTHER}"
    )


def _used(tensor: torch.Tensor) -> set[int]:
    """Ids of the parameters that a tensor was computed from."""
    parameters: set[int] = set()
    nodes, seen = [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            parameters.add(id(node.variable))
        nodes += [before for before, _ in node.next_functions]
    return parameters


@contextmanager
def _evaluating(model: CausalDecoder) -> Iterator[None]:
    """In evaluation mode, and with gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _explained(config: DecoderConfig, model: CausalDecoder) -> Iterator[None]:
    """Turns errors of the library into a ConfigError of one line."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        raise ConfigError([failure(config, model.config, error, "cannot compute a few tokens")]) from error


def failure(config: DecoderConfig, hf_config: HfConfig, error: Exception, what: str) -> str:
    """An error of the library on one line: the sizes that do not fit each other, if they are the cause, or its text."""
    problem = size_problem(hf_config)
    if problem is not None:
        return f"model.decoder: {decoder_title(config)}: {problem}"
    return f"model.decoder: {decoder_title(config)} {what}: {reason(error)}; {_OTHER}"
