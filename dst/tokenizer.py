"""A Hugging Face fast tokenizer, read from its folder with the `tokenizers` library alone.

Rule: text is encoded piece by piece, and the pieces' ids joined are the ids of the whole, except where the tokenizer
would merge across the border of two pieces. SentencePiece-style tokenizers put a space in front of the text they are
given, or of what follows a control token; a piece that continues a text gets none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from dst.control_tokens import ControlStrings
from dst.errors import TokenizerError
from dst.template import IMAGE_TOKEN
from dst.tokenizer_trial import trial_problem

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


class TextTokenizer:
    """The tokenizer of a build: `<image>` and `add_tokens` are part of it, a post-processor that adds tokens is not.

    control: control string -> id. Special tokens, and other added tokens that look like markup (`<think>`); ordinary
    words or white space that a vocabulary happens to list as added tokens are not control.
    control_ids: their ids, without the unknown token, which strange characters become without anybody's intent.
    new_tokens: token -> id of those that its folder did not have.
    """

    def __init__(
        self,
        definition: dict[str, Any],
        *,
        bos_token: str,
        eos_token: str,
        pad_token: str = "",
        new_tokens: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """pad_token: empty if there is none; a saved folder then names the end token."""
        self._definition = definition
        self._pad_token = pad_token or eos_token
        self.new_tokens = new_tokens
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._start = _build(definition)
        # After a control token, and amid text; None where they would be no different from the start.
        self._after_control = self._amid = None
        if (amid := _without_prefix_space(definition, schemes=("always", "first"))) != definition:
            self._after_control = _build(_without_prefix_space(definition, schemes=("first",)))
            self._amid = _build(amid)
        self.control = {
            token.content: index
            for index, token in sorted(self._start.get_added_tokens_decoder().items())
            if token.content.strip() and (token.special or _MARKUP.fullmatch(token.content))
        }
        self.control_strings = ControlStrings(self.control)
        self.image_id = self.control[IMAGE_TOKEN]
        unknown = _unknown_token(definition)
        self.control_ids = frozenset(
            index for token, index in self.control.items() if token != unknown or token in (bos_token, eos_token)
        )

    @property
    def vocabulary_size(self) -> int:
        return int(self._start.get_vocab_size())

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides ids: the definition, bos and eos."""
        canonical = json.dumps([self._definition, self.bos_token, self.eos_token], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """The ids of each piece; no token crosses the border of two pieces."""
        if self._after_control is None or self._amid is None:
            return [encoding.ids for encoding in self._start.encode_batch_fast(pieces, add_special_tokens=False)]
        ids: list[list[int]] = []
        tokenizer = self._start
        for piece in pieces:
            controls = self.control_strings.find(piece)
            text_end = len(piece)
            if tokenizer is self._amid and controls:
                text_end = controls[0][0]
            ids.append(_ids(tokenizer, piece[:text_end]) + _ids(self._after_control, piece[text_end:]))
            tokenizer = self._after_control if controls and controls[-1][1] == len(piece) else self._amid
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._start.decode(list(ids), skip_special_tokens=False))

    def token(self, index: int) -> str:
        """A token as the vocabulary writes it, such as `Ġthe`; empty for an id without one."""
        return str(self._start.id_to_token(index) or "")

    def save(self, folder: Path, chat_template: str) -> None:
        """Write a folder that `AutoTokenizer.from_pretrained` opens with these exact ids and this template."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": self.bos_token or None,
            "clean_up_tokenization_spaces": False,
            "eos_token": self.eos_token,
            "image_token": IMAGE_TOKEN,
            "model_max_length": 10**9,
            "pad_token": self._pad_token,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        write = {
            "tokenizer.json": json.dumps(self._definition, ensure_ascii=False, indent=1),
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1, sort_keys=True),
            "chat_template.jinja": chat_template,
        }
        for name, text in write.items():
            (folder / name).write_text(text, encoding="utf-8")


def load_tokenizer(path: str | Path, add_tokens: Sequence[str] = (), *, tried: bool = False) -> TextTokenizer:
    """Read a local tokenizer folder, or a model id of the Hugging Face hub (its cache first).

    tried: whether another process of this program has loaded the folder, so that it needs no trial. Raises
    TokenizerError if it has no usable tokenizer.json or no end token.
    """
    folder = _locate(str(path))
    definition = read_json(folder / "tokenizer.json")
    names = read_names(folder)
    bos, eos, pad = (token_text(names.get(key)) for key in ("bos_token", "eos_token", "pad_token"))
    if not eos:
        raise TokenizerError(
            f"tokenizer {path}: names no eos_token, which every answer must end with; add one to tokenizer_config.json"
        )
    problem = None if tried else trial_problem(_plain(definition))
    if problem is not None:
        raise TokenizerError(f"tokenizer {path}: tokenizer.json cannot be used ({problem}); download it again")
    try:
        tokenizer = _build(definition)
    except Exception as error:  # the Rust library raises bare Exception
        raise TokenizerError(f"tokenizer {path}: tokenizer.json cannot be used ({error})") from None
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    control = [token for token in dict.fromkeys([*add_tokens, IMAGE_TOKEN]) if token not in special]
    new = [token for token in control if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in control])
    absent = [token for token in (bos, eos) if token and tokenizer.token_to_id(token) is None]
    if absent:
        raise TokenizerError(f"tokenizer {path}: {absent[0]!r} is named as bos or eos token but not in tokenizer.json")
    definition = json.loads(tokenizer.to_str())
    definition["post_processor"] = _without_added_tokens(definition["post_processor"])
    return TextTokenizer(
        definition,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad if tokenizer.token_to_id(pad) is not None else "",
        new_tokens={token: index for token in new if (index := tokenizer.token_to_id(token)) is not None},
    )


def load_tokenizer_file(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json as the library loads it, after a trial. Raises TokenizerError if it cannot be used."""
    definition = read_json(path)
    problem = trial_problem(_plain(definition))
    if problem is None:
        try:
            return _build(definition)
        except Exception as error:  # the Rust library raises bare Exception
            problem = str(error)
    raise TokenizerError(f"{path}: cannot be used ({problem}); download it again")


def _locate(name: str) -> Path:
    if (Path(name) / "tokenizer.json").is_file():
        return Path(name)
    if Path(name).exists():
        hint = (
            "it has a tokenizer.model only: load it with transformers and save_pretrained it as a fast tokenizer"
            if (Path(name) / "tokenizer.model").is_file()
            else "expected a folder with tokenizer.json and tokenizer_config.json"
        )
        raise TokenizerError(f"tokenizer {name}: no tokenizer.json there; {hint}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise TokenizerError(f"tokenizer {name}: no such folder; expected one with tokenizer.json, or a hub id")
    return from_hub(name, _FILES)


def from_hub(name: str, files: Sequence[str]) -> Path:
    """A folder with those of the files that a model of the hub has. Raises TokenizerError if there is no such model."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # offline, unknown id, gated: the library has a dozen classes
        raise TokenizerError(
            f"tokenizer {name}: no such folder, and the hub did not give it ({type(error).__name__}); "
            "give the path of a folder with tokenizer.json"
        ) from None


def read_names(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what only special_tokens_map.json names. Raises TokenizerError for a broken file."""
    names = {key: value for key, value in read_json(folder / "tokenizer_config.json", missing_ok=True).items() if value}
    return {**read_json(folder / "special_tokens_map.json", missing_ok=True), **names}


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The object of a JSON file. Raises TokenizerError if it cannot be read or holds something else."""
    if missing_ok and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read ({error})") from None
    except RecursionError:
        raise TokenizerError(f"{path}: cannot be read (nested too deeply)") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: holds {type(value).__name__}; expected an object")
    return value


def token_text(value: object) -> str:
    """A token as these files name it: as text, or as an object with its content; empty if there is none."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _build(definition: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(_plain(definition))


def _plain(definition: dict[str, Any]) -> str:
    return json.dumps({**definition, "padding": None, "truncation": None})


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    # The batch call is the one that does not work out offsets.
    return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids if text else []


def _without_added_tokens(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A post-processor that adds no token of its own, such as `<s>`: the template writes all of them.

    Otherwise transformers, which follows it, would begin a rendered prompt with a second `<s>`.
    """
    if step is None or step["type"] == "ByteLevel":  # changes offsets only
        return step
    if step["type"] == "Sequence":
        kept = [child for child in map(_without_added_tokens, step["processors"]) if child is not None]
        return {**step, "processors": kept} if kept else None
    return None


def _unknown_token(definition: dict[str, Any]) -> str | None:
    model = definition["model"]
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:
        unknown = model["vocab"][model["unk_id"]][0]
    return unknown if isinstance(unknown, str) else None


def _without_prefix_space(definition: dict[str, Any], *, schemes: Sequence[str]) -> dict[str, Any]:
    """The same tokenizer without the space in front, as far as it follows one of the schemes.

    always: in front of the text and after each control token. first: in front of the text only.
    """

    def clean(step: Any) -> Any:
        if not isinstance(step, dict):
            return step
        for children in ("normalizers", "pretokenizers"):
            if children in step:
                return {**step, children: [kept for child in step[children] if (kept := clean(child)) is not None]}
        match step:
            case {"type": "Prepend"} if "always" in schemes:
                return None
            case {"type": "Metaspace", "prepend_scheme": scheme} if scheme in schemes:
                return {**step, "prepend_scheme": "never"}
            case {"type": "ByteLevel", "add_prefix_space": True} if "always" in schemes:
                return {**step, "add_prefix_space": False}
        return step

    return {key: clean(value) if key in ("normalizer", "pre_tokenizer") else value for key, value in definition.items()}
