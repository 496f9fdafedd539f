"""`share`: several records about the same images as one sample, with a branch for each.

Rule: records are joined if they show the same images and begin with the same tokens, up to the last image at least: in
their own order, up to `share` of them, never beyond max_length. The beginning is what all of them have in common before
the first trained token. A record that shares with none is a sample of its own, as without `share`. So each record has
the tokens that it has alone, and its loss and gradients are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dst import Encoded
from preprocess.compiler.member import Member
from preprocess.compiler.task import TaskContext, Tools
from preprocess.conversation import Image
from preprocess.dedupe.equal_rows import first_equal
from preprocess.errors import RejectError
from preprocess.images.stores import StoreList
from preprocess.images.tables import is_row_key
from shards.format.branches import IntArray, join_branches

_WAITING = 8
"""Most samples that records with the same images and beginning may still join"""


@dataclass(slots=True)
class SharedSample:
    """The members of a sample. beginning: how many first tokens all of them have in common, none of them trained."""

    members: list[Member]
    beginning: int
    own_tokens: int
    """Text tokens of all members behind the beginning"""

    @classmethod
    def of(cls, member: Member) -> SharedSample:
        beginning = member.encoded.trained[0][0]
        return cls([member], beginning, len(member.encoded.ids) - beginning)

    def join(self, member: Member, up_to_images: int, context: TaskContext) -> bool:
        """Whether the member fits; then it has joined.

        up_to_images: how many first tokens end with the last image; those of all members are equal.
        """
        beginning = min(self.beginning, _common(self.members[0].encoded.ids, member.encoded))
        own_tokens = self.own_tokens + len(self.members) * (self.beginning - beginning)
        own_tokens += len(member.encoded.ids) - beginning
        length = beginning + own_tokens + member.encoded.images * (context.image_tokens - 1)
        if not 0 < up_to_images <= beginning or len(self.members) == context.share or length > context.max_length:
            return False
        self.members.append(member)
        self.beginning, self.own_tokens = beginning, own_tokens
        return True

    @property
    def text_tokens(self) -> int:
        return self.beginning + self.own_tokens - self.members[0].encoded.images

    def tokens(self) -> IntArray:
        """Ids over labels, int32 [2, T], of one member; of several also branch numbers, int32 [3, T]."""
        records = [np.stack([member.encoded.ids, member.encoded.labels]) for member in self.members]
        return records[0] if len(records) == 1 else join_branches(records, self.beginning)


def share(members: Iterable[Member], tools: Tools, context: TaskContext) -> list[SharedSample]:
    """The samples: those with fewer members first, as a shard needs them, then in their own order."""
    waiting: dict[object, list[SharedSample]] = {}
    samples: list[SharedSample] = []
    for member in members:
        up_to_images = _up_to_images(member, tools.chat.tokenizer.image_id)
        images = tuple(_identity(image, tools.stores) for image in member.conversation.images)
        alike = waiting.setdefault((images, up_to_images.tobytes()), [])
        if not any(sample.join(member, len(up_to_images), context) for sample in alike):
            samples.append(SharedSample.of(member))
            alike.append(samples[-1])
            del alike[:-_WAITING]
    return sorted(samples, key=lambda sample: (len(sample.members), sample.members[0].row))


class ImageUnits(NamedTuple):
    """Rows of a dataset in an order in which those that may share follow each other."""

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.bool_]
    """For each row in this order, whether a unit begins with it: rows that one shard holds together"""
    adds_images: npt.NDArray[np.bool_]
    """Whether the row shows other images than the one before it in its unit"""


def image_units(groups: npt.NDArray[np.uint64], images: npt.NDArray[np.uint64], most: int) -> ImageUnits:
    """Units of at most `most` rows with the same groups, those with the same images together.

    groups, images: hashes of each row's groups and images. A shard that ends between units parts no records that could
    share, unless more than `most` have the same groups.
    """
    first_of_group, first_of_images = map(first_equal, (groups, images))
    order = np.lexsort((first_of_images, first_of_group))
    group_starts = np.flatnonzero(np.diff(first_of_group[order], prepend=-1))
    in_group = np.arange(len(order)) - np.repeat(group_starts, np.diff(group_starts, append=len(order)))
    starts = in_group % most == 0
    return ImageUnits(order, starts, starts | (np.diff(first_of_images[order], prepend=-1) != 0))


def _identity(image: Image, stores: StoreList) -> object:
    """What is equal for equal images: the reference; of an image in a row of a table its bytes.

    A table with a row for each question repeats an image, under a name of its own each time.
    """
    if not is_row_key(image.name):
        return image
    try:
        return hashlib.sha256(stores.read(image)).digest()
    except RejectError:
        return image  # it is rejected when it is prepared


def _up_to_images(member: Member, image_id: int) -> IntArray:
    places = np.flatnonzero(member.encoded.ids == image_id)
    return member.encoded.ids[: places[-1] + 1 if len(places) else 0]


def _common(ids: IntArray, encoded: Encoded) -> int:
    """How many first tokens are those of `ids`, and not trained."""
    length = min(len(ids), encoded.trained[0][0])
    different = np.flatnonzero(encoded.ids[:length] != ids[:length])
    return int(different[0]) if len(different) else length
