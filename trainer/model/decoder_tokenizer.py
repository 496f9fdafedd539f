"""Whether a pretrained model uses the token ids that a build was compiled to.

The rule: every token of the model's own vocabulary has the same id in the build's tokenizer, which may have added
tokens. Training on the ids of another tokenizer would raise no error and be useless.
"""

from __future__ import annotations

from pathlib import Path

from dst.errors import TokenizerError
from trainer.compat.transformers import hub_file
from trainer.config.model import DecoderConfig

FILE = "tokenizer.json"


def check_tokenizer(config: DecoderConfig, folder: Path, *, llava: str | None = None) -> list[str]:
    """Problems between a build's tokenizer folder and a decoder; none if the decoder has no tokenizer.json.

    llava: the LLaVA folder or hub id from which the run takes the decoder and its tokens, see
    trainer.checkpoint.init_from.
    """
    if llava is not None:
        return _problems("model.init_from", llava, "model", folder, with_added_tokens=True)
    if config.name is None:
        return []
    return _problems("model.decoder", config.name, "decoder", folder, with_added_tokens=False)


def _problems(where: str, name: str, what: str, folder: Path, *, with_added_tokens: bool) -> list[str]:
    """with_added_tokens: a LLaVA was trained with the tokens that were added to its decoder's vocabulary."""
    from dst.tokenizer import load_tokenizer_file

    try:
        path = hub_file(name, FILE)
    except Exception:  # there is no such file: the hub's library has a dozen classes for it
        return []
    if path is None:
        return []
    try:
        own_ids = load_tokenizer_file(Path(path)).get_vocab(with_added_tokens=with_added_tokens)
        build_ids = load_tokenizer_file(folder / FILE).get_vocab(with_added_tokens=True)
    except TokenizerError as error:
        return [f"{where}: {error}"]
    differing = [token for token, number in own_ids.items() if build_ids.get(token) != number]
    if not differing:
        return []
    token = min(differing, key=own_ids.__getitem__)
    in_build = f"has {build_ids[token]} for it" if token in build_ids else "has no such token"
    return [
        f"{where}: the build's tokenizer is not that of {name}: {len(differing)} of {len(own_ids)} tokens differ; the "
        f"first is {token!r}, id {own_ids[token]}, and the build {in_build}; rebuild with tokenizer: {name}, or choose "
        f"the {what} of that tokenizer"
    ]
