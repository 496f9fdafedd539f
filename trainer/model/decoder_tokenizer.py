"""Whether a pretrained decoder uses the token ids that a build was compiled to.

The rule: every token of the decoder's own vocabulary has the same id in the build's tokenizer, which may have added
tokens. Training on the ids of another tokenizer would raise no error and be useless.
"""

from __future__ import annotations

from pathlib import Path

from trainer.compat.transformers import hub_file
from trainer.config.model import DecoderConfig

FILE = "tokenizer.json"


def check_tokenizer(config: DecoderConfig, folder: Path) -> list[str]:
    """Problems between a decoder and a build's tokenizer folder; none if the decoder has no tokenizer.json."""
    if config.name is None:
        return []
    from tokenizers import Tokenizer

    try:
        path = hub_file(config.name, FILE)
        if path is None:
            return []
        decoder_ids = Tokenizer.from_file(path).get_vocab(with_added_tokens=False)
    except (
        Exception
    ):  # the decoder has no such file, or the tokenizers library, which raises nothing else, cannot read it
        return []
    build_ids = Tokenizer.from_file(str(folder / FILE)).get_vocab(with_added_tokens=True)
    differing = [token for token, number in decoder_ids.items() if build_ids.get(token) != number]
    if not differing:
        return []
    token = min(differing, key=decoder_ids.__getitem__)
    in_build = f"has {build_ids[token]} for it" if token in build_ids else "has no such token"
    return [
        f"model.decoder: the build's tokenizer is not that of {config.name}: {len(differing)} of {len(decoder_ids)} "
        f"tokens differ; the first is {token!r}, id {decoder_ids[token]}, and the build {in_build}; rebuild with "
        f"tokenizer: {config.name}, or choose the decoder of that tokenizer"
    ]
