"""Take the vision tower out of a QWen-VL checkpoint: `python tools/extract_qwen_vl.py FOLDER OUT.safetensors`.

The rule: shard by shard, so that memory holds one shard and the tower; weights are read from safetensors or by torch
without unpickling code; nothing is written unless the tower is whole. A .json next to OUT gets with the sizes that the
encoder `qwen_vl` builds it from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from trainer.model_io.safetensors_files import save_tensors

PREFIX = "transformer.visual."
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SIZES = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio", "output_dim", "n_queries")


class ExtractError(Exception):
    """What is wrong with the checkpoint, and what to do."""


def extract(folder: Path, out: Path) -> dict[str, torch.Tensor]:
    """Write the tower and its sizes; returns its tensors. Raises ExtractError, and then writes nothing."""
    if out.suffix != ".safetensors":
        raise ExtractError(f"{out}: expected a name that ends in .safetensors")
    listed = _listed(folder)
    sizes = _sizes(folder)
    tensors: dict[str, torch.Tensor] = {}
    for shard, names in listed.items():
        print(f"{shard.name}", file=sys.stderr)
        tensors.update(_read(shard, names))
    if not tensors:
        raise ExtractError(
            f"{folder}: no weight begins with {PREFIX}; expected a checkpoint of QWen-VL or QWen-VL-Chat"
        )
    _check(tensors, sizes, folder)
    _put(out, tensors, sizes)
    return tensors


def _listed(folder: Path) -> dict[Path, list[str] | None]:
    """The files to open, with the names to take; None: whatever has the prefix."""
    if not folder.is_dir():
        raise ExtractError(f"{folder}: no such folder; expected a QWen-VL checkpoint, as `hf download` stores it")
    for index in (folder / name for name in _INDEXES):
        if index.is_file():
            try:
                places: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
            except (ValueError, KeyError, OSError) as error:
                raise ExtractError(f"{index}: cannot be read ({error}); download it again") from None
            names_by_file: dict[Path, list[str] | None] = {}
            for name, file in sorted(places.items()):
                if name.startswith(PREFIX):
                    names = names_by_file.setdefault(folder / file, [])
                    assert names is not None
                    names.append(name)
            missing = sorted(path.name for path in names_by_file if not path.is_file())
            if missing:
                raise ExtractError(f"{folder}: {index.name} names {', '.join(missing)}, not there; download them")
            return names_by_file
    for whole in (folder / name for name in _WHOLE):
        if whole.is_file():
            return {whole: None}
    raise ExtractError(f"{folder}: holds none of {', '.join((*_INDEXES, *_WHOLE))}; expected a checkpoint's folder")


def _read(shard: Path, names: list[str] | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of one shard by their names in the tower, copied, so that the shard can be released."""
    try:
        if shard.suffix == ".safetensors":
            with safe_open(shard, framework="pt") as opened:
                for name in names if names is not None else _prefixed(opened.keys()):
                    yield name.removeprefix(PREFIX), opened.get_tensor(name)
            return
        held = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
        for name in names if names is not None else _prefixed(held):
            yield name.removeprefix(PREFIX), held[name].detach().clone().contiguous()
    except KeyError as error:
        raise ExtractError(f"{shard}: lacks {error}, which the index says it holds; download it again") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise ExtractError(f"{shard}: cannot be read ({_first_line(error)}); download it again") from None
    except Exception as error:  # torch reports what it refuses to unpickle with an error of pickle's
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ExtractError(f"{shard}: holds more than tensors and is not opened ({_first_line(error)})") from None


def _prefixed(names: object) -> list[str]:
    return sorted(name for name in names if isinstance(name, str) and name.startswith(PREFIX))  # type: ignore[attr-defined]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _sizes(folder: Path) -> dict[str, float]:
    """QWen-VL's own names for them are ours."""
    path = folder / "config.json"
    try:
        visual = json.loads(path.read_text("utf-8"))["visual"]
        return {name: visual[name] for name in _SIZES if name in visual}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExtractError(f"{path}: no sizes of the tower under `visual` ({error}); download it again") from None


def _check(tensors: dict[str, torch.Tensor], sizes: dict[str, float], folder: Path) -> None:
    layers = {name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")}
    expected = {str(number) for number in range(int(sizes.get("layers", 48)))}
    once = {"conv1.weight", "positional_embedding", "attn_pool.query", "attn_pool.pos_embed", "ln_post.weight", "proj"}
    missing = sorted(once - tensors.keys()) + [f"layer {number}" for number in sorted(expected - layers, key=int)]
    if missing:
        raise ExtractError(f"{folder}: the tower lacks {', '.join(missing[:5])}; download the whole checkpoint")


def _put(out: Path, tensors: dict[str, torch.Tensor], sizes: dict[str, float]) -> None:
    """The weights come last, each file under a temporary name first: a tower that is there is whole."""
    sizes = {**sizes, "positions": tensors["positional_embedding"].shape[0]}
    out.parent.mkdir(parents=True, exist_ok=True)
    described, temporary = out.with_suffix(".json"), out.with_name(f".{out.name}.part")
    described.write_text(json.dumps({"from": "QWen-VL", "sizes": sizes}, indent=1) + "\n", "utf-8")
    try:
        save_tensors(tensors, temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a QWen-VL checkpoint, sharded .bin or .safetensors")
    parser.add_argument("out", type=Path, help="where to write the tower: a .safetensors file")
    arguments = parser.parse_args()
    try:
        tensors = extract(arguments.folder, arguments.out)
    except ExtractError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    print(f"{arguments.out}: {len(tensors)} tensors, {size / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
