#!/usr/bin/env bash
# datasets 5.2.0: a map function that only looks at an image changes the stored image.
#
# One expects: `map` with a function that returns {"width": row["image"].width} adds a column and leaves the images
# alone. Seen: the row is decoded where the function touches it, and map writes the decoded image back by encoding it
# again, even though the function does not return it. A JPEG of quality 95 is stored with Pillow's default of 75: less
# than half of its bytes, other pixels. A JPEG with an EXIF orientation, even that of an upright image, is stored as a
# PNG, several times as large. There is no warning, and the next such map encodes once more. So a pass that only notes
# sizes costs quality before training begins. The bytes are kept if the function does not touch the image, if it is
# called with input_columns=["image"], or after a cast to Image(decode=False). `filter` keeps them too.
#
# Seen with datasets 5.2.0, pillow 13.0.0, pyarrow 26.0.1, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1 'numpy<3'

export HF_HUB_OFFLINE=1 HF_HOME="$folder/cache"
"$python" - <<'PYTHON'
import io
import sys

import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()


def jpeg(orientation=None):
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def stored(dataset):
    return [row["bytes"] for row in dataset.with_format("arrow")[:]["image"].to_pylist()]


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


def kind(data):
    return f"{Image.open(io.BytesIO(data)).format} of {len(data)} bytes"


def width_of(image):
    return {"width": image.width}


def width_of_bytes(row):
    return width_of(Image.open(io.BytesIO(row["image"]["bytes"])))


names = ("no orientation", "orientation 1", "orientation 6")
before = [jpeg(), jpeg(1), jpeg(6)]
images = datasets.Image()
rows = {"image": [{"bytes": data, "path": None} for data in before]}
source = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": images}))
after = stored(source.map(lambda row: width_of(row["image"])))
for name, old, new in zip(names, before, after):
    print(f"{name}: {kind(old)} became {kind(new)}")
difference = np.abs(decoded(before[0]) - decoded(after[0])).mean()
print(f"mean difference of the first: {difference:.1f}/255")

undecoded = source.cast_column("image", datasets.Image(decode=False))
keeping = {
    "a function that does not touch the image": source.map(lambda row: {"width": 0}),
    "input_columns": source.map(width_of, input_columns=["image"]),
    "decode=False": undecoded.map(width_of_bytes).cast_column("image", images),
    "filter": source.filter(lambda row: row["image"].width > 0),
}
kept = {way: stored(dataset) == before for way, dataset in keeping.items()}
for way, same in kept.items():
    print(f"{way}: {'the same bytes' if same else 'other bytes'}")

smaller = after[0].startswith(b"\xff\xd8") and len(after[0]) < len(before[0]) / 2 and difference > 1
larger = all(new.startswith(b"\x89PNG") and len(new) > 3 * len(old) for old, new in zip(before[1:], after[1:]))
if not (smaller and larger and all(kept.values())):
    sys.exit("changed: expected a smaller JPEG, two larger PNGs, and the same bytes in four ways")
PYTHON
