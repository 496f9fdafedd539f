#!/usr/bin/env bash
# Pillow writes an MPO whose list of images is wrong from the third size on: it cannot read its own fourth image.
#
# One expects: after image.save(file, "MPO", save_all=True, append_images=[...]), each image can be read with seek. Seen:
# seek(3) raises SyntaxError or ValueError. _save_all takes the size of an image as the end of the file minus the size of
# the image before, not minus the end of the image before. That is right for two images, and harmless for the last of
# three. A reader that trusts the list loses the images of such a file from the fourth on; all of them are there, one
# complete JPEG after the other.
#
# Seen with pillow 13.0.0, pip 23.2.1, Python 3.11. 10.4.0 writes a list that is longer than the space that it keeps for
# it, and opens such a file as a JPEG of one image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/save.py" <<'PYTHON'
import io

from PIL import Image

frames = [Image.new("RGB", (32, 24), (10 * number,) * 3) for number in range(5)]
file = io.BytesIO()
frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
image, readable = Image.open(file), []
for number in range(image.n_frames):
    try:
        image.seek(number)
        image.load()
        readable.append(number)
    except (SyntaxError, ValueError, OSError):
        pass
print(f"{file.getvalue().count(bytes.fromhex('ffd8ff'))} images in the file, readable: {readable}")
PYTHON

python3 -m pip install -qq --disable-pip-version-check --target "$folder/pillow" pillow==13.0.0
found=$(PYTHONPATH="$folder/pillow" python3 "$folder/save.py")
echo "pillow 13.0.0: $found"
[ "$found" = "5 images in the file, readable: [0, 1, 2]" ] || { echo 'changed: expected only the first three'; exit 1; }
