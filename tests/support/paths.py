"""Where the project's own files are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "data"
"""The example datasets, a folder for each"""
PHOTOS = sorted((EXAMPLES / "coco" / "train2017").glob("*.jpg"))
