"""Where the images of a dataset are, if none of them is where the blend says.

Rule: only a dataset whose images are all missing is searched: the folders near its root, for the names in its first
records. A build reads none of what is found; it says what to write into `images`.
"""

from __future__ import annotations

import os.path
from itertools import islice
from pathlib import Path

import numpy as np

from preprocess.blend.folders import walk
from preprocess.blend.image_search import elsewhere, find_images
from preprocess.compiler.report import DatasetReport
from preprocess.compiler.spool import Spool
from preprocess.conversation import is_embedded, is_url

_ROWS = 200
_NAMES = 20


def missing_images_hint(report: DatasetReport, spool: Spool, root: Path) -> str:
    """What to change, or that nothing was found; "" for a dataset with images, or with other faults alone."""
    if report.images or not report.rejects["image_missing"]:
        return ""
    shown = spool.images(np.arange(min(len(spool), _ROWS)))
    names = dict.fromkeys(
        image.name for image in shown if image.store is None and not is_url(image.name) and not is_embedded(image.name)
    )
    if not names:
        return ""
    first = list(islice(names, _NAMES))
    folders = list(walk(root))
    stores, missing = find_images(first, root, folders)
    if stores:
        paths = ", ".join(os.path.relpath(path, root) for path in stores)
        found = next(name for name in first if name not in missing)
        return f"all images are missing, but {found} is in {paths}; set the dataset's images: [{paths}]"
    other = elsewhere(first[0], root, folders)
    if other is None:
        return f"all images are missing; {first[0]} is in no folder or archive near {root}"
    return (
        f"all images are missing; the records name {first[0]}, and {os.path.relpath(other, root)} is below the root: "
        "name the folder from which the path in the records starts in the dataset's images"
    )
