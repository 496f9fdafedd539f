#!/usr/bin/env bash
# Pillow's convert("RGB") clips a 16-bit grayscale PNG at 255, so that nearly all of it turns white.
#
# One expects: 16 bits are scaled to 8 by dropping the low byte, as Pillow itself does when it opens a PNG of 16-bit RGB,
# RGBA, or gray with alpha. Seen: gray without alpha opens with mode I;16, and convert("RGB") or convert("L") keeps the
# numbers and clips them: 0x4000, a dark gray, becomes 255. With an alpha channel the same gray becomes 64. Depth maps,
# X-rays and scans are stored this way. `Image.open(...).convert("RGB")` is the usual first line of a data loader,
# and it hands the model a white image next to a question about its contents, without a warning.
#
# Seen with pillow 10.4.0 and 13.0.0, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/convert.py" <<'PYTHON'
import io
import struct
import zlib

from PIL import Image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(color_type, samples):
    """One pixel of 16 bits a channel."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, color_type, 0, 0, 0)
    pixel = zlib.compress(b"\0" + struct.pack(f">{len(samples)}H", *samples))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


for name, color_type, channels in (("gray", 0, 1), ("gray with alpha", 4, 2), ("RGB", 2, 3), ("RGBA", 6, 4)):
    colors = []
    for value in (0x0080, 0x4000, 0x8000):
        samples = [value] * channels
        if color_type in (4, 6):
            samples[-1] = 0xFFFF
        image = Image.open(io.BytesIO(png(color_type, samples)))
        colors.append(image.convert("RGB").getpixel((0, 0))[0])
    print(f"{name}: {image.mode} {colors}")
PYTHON

for version in 10.4.0 13.0.0; do
    python3 -m pip install -qq --disable-pip-version-check --target "$folder/$version" "pillow==$version"
    found=$(PYTHONPATH="$folder/$version" python3 "$folder/convert.py")
    printf 'pillow %s: 0x0080, 0x4000 and 0x8000 in RGB\n%s\n' "$version" "$found"
    expected=$(printf '%s\n' 'gray: I;16 [128, 255, 255]' 'gray with alpha: RGBA [0, 64, 128]' 'RGB: RGB [0, 64, 128]' \
        'RGBA: RGBA [0, 64, 128]')
    [ "$found" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected"; exit 1; }
done
