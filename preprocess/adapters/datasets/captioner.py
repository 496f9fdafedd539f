"""A caption as a conversation: a prompt asks for it, and all captions of the image are its references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.parsing.choices import choose, prompts_of
from preprocess.adapters.parsing.fields import image_groups
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.keys import filter_fields
from preprocess.adapters.parsing.record_location import RecordLocation
from preprocess.conversation import Conversation, Image, OfficialSplit, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedImage:
    """The data that all captions of an image share. entry: the image's own record, {} without one."""

    image: Image
    groups: tuple[str, ...]
    split: OfficialSplit
    captions: tuple[str, ...]
    entry: Mapping[str, Any]


class Captioner:
    """The request, its prompts, and the ids assigned so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompts = prompts_of(request)
        self.identities = Identities(request)

    def captioned_image(
        self,
        name: str,
        split: OfficialSplit = "",
        captions: tuple[str, ...] = (),
        entry: Mapping[str, Any] = MappingProxyType({}),
    ) -> CaptionedImage:
        image = Image(name=name)
        return CaptionedImage(
            image=image, groups=image_groups(self.request, [image]), split=split, captions=captions, entry=entry
        )

    def conversation(
        self, location: RecordLocation, record: Mapping[str, Any], caption: str, captioned: CaptionedImage
    ) -> Conversation:
        """record: the caption's own, {} if the file has a text alone."""
        prompt = choose(self.prompts, self.request.seed, location.source.record)
        return Conversation(
            id=location.claim(),
            turns=(Turn(role="user", parts=(captioned.image, prompt)), Turn(role="assistant", parts=(caption,))),
            sources=(location.source,),
            groups=captioned.groups,
            official_split=captioned.split,
            references=captioned.captions,
            fields=filter_fields(self.request, record, captioned.entry),
        )
