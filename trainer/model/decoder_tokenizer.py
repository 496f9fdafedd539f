"""Whether a pretrained decoder reads the ids that a build was compiled to.

The rule: every token of the decoder's own vocabulary has the same id in the build's tokenizer, which may have added
some. Ids of another tokenizer would train without any error, and to no avail.
"""

from __future__ import annotations

from pathlib import Path

from trainer.compat.transformers import hub_file
from trainer.config.model import DecoderConfig

FILE = "tokenizer.json"


def check_tokenizer(config: DecoderConfig, folder: Path) -> list[str]:
    """Problems between a decoder and a build's tokenizer folder; none where the decoder has no tokenizer.json."""
    if config.name is None:
        return []
    from tokenizers import Tokenizer

    try:
        path = hub_file(config.name, FILE)
        if path is None:
            return []
        wanted = Tokenizer.from_file(path).get_vocab(with_added_tokens=False)
    except (
        Exception
    ):  # the decoder has no such file, or the tokenizers library, which raises nothing else, cannot read it
        return []
    got = Tokenizer.from_file(str(folder / FILE)).get_vocab(with_added_tokens=True)
    differing = [token for token, number in wanted.items() if got.get(token) != number]
    if not differing:
        return []
    token = min(differing, key=wanted.__getitem__)
    found = f"has {got[token]} for it" if token in got else "has no such token"
    return [
        f"model.decoder: the build's tokenizer is not that of {config.name}: {len(differing)} of {len(wanted)} tokens "
        f"differ; the first is {token!r}, id {wanted[token]}, and the build {found}; rebuild with tokenizer: "
        f"{config.name}, or choose the decoder of that tokenizer"
    ]
