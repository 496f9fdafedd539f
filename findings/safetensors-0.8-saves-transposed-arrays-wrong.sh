#!/usr/bin/env bash
# safetensors 0.8.0 saves a transposed numpy array with its values in the wrong places, without an error.
#
# One expects: a saved array is read back equal, as with safetensors 0.4 to 0.7, or a layout that cannot be saved is
# refused, as safetensors.torch refuses a transposed tensor. Seen: safetensors.numpy of 0.8.0 copies the array's memory
# as it is and records the shape of the view. The shape is right and the values are permuted. Its documentation asks for
# contiguous arrays, but nothing checks. Images that were transposed from height-width-channel to channel-height-width,
# and weights that were transposed while they were converted, are such views. A converted model then loads without any
# complaint and gives nonsense. numpy.ascontiguousarray before saving avoids it.
#
# Seen with safetensors 0.7.0 and 0.8.0, numpy 2.4.6, torch 2.13.0 (the CPU build is enough), pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6 packaging

cat > "$folder/save.py" <<'PYTHON'
import numpy as np
import torch
from safetensors import numpy as of_numpy
from safetensors import torch as of_torch

weight = np.arange(6, dtype=np.float32).reshape(2, 3)
image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
arrays = {
    "weight": weight,
    "weight transposed": weight.T,
    "weight in Fortran order": np.asfortranarray(weight),
    "image with channels first": image.transpose(2, 0, 1),
    "weight transposed, made contiguous": np.ascontiguousarray(weight.T),
}
for name, array in arrays.items():
    read = of_numpy.load(of_numpy.save({"x": array}))["x"]
    assert read.shape == array.shape and read.dtype == array.dtype
    print(f"{name}: {'equal' if np.array_equal(read, array) else 'other values'}")
try:
    of_torch.save({"x": torch.from_numpy(weight).T})
    print("torch: saved")
except ValueError:
    print("torch: refused")
PYTHON

check() { # VERSION EXPECTED: what is read of an array that is not contiguous
    "$python" -m pip install -qq --disable-pip-version-check "safetensors==$1"
    found=$("$python" "$folder/save.py")
    printf 'safetensors %s\n%s\n' "$1" "$found"
    expected=$(printf '%s\n' 'weight: equal' "weight transposed: $2" "weight in Fortran order: $2" \
        "image with channels first: $2" 'weight transposed, made contiguous: equal' 'torch: refused')
    [ "$found" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected"; exit 1; }
}

check 0.7.0 equal
check 0.8.0 'other values'
