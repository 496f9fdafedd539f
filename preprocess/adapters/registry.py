"""The table of adapters: each reads a dataset in its original layout and yields conversations or rejects.

A new dataset is one function `read(request)` and one row here.
"""

from __future__ import annotations

from functools import partial

from preprocess.adapters.base import Adapter, Layout, Option
from preprocess.adapters.datasets import (
    aokvqa,
    captions,
    llava,
    llava_otter,
    mimicit,
    ocr_vqa,
    sparkles,
    vqa,
    vqa_records,
)
from preprocess.adapters.datasets.chat import forms
from preprocess.adapters.datasets.chat import read as chat
from preprocess.adapters.parsing.identities import DUPLICATE_IDS
from preprocess.adapters.parsing.media_tags import IMAGE_MARKER, MEDIA_TAGS
from preprocess.adapters.parsing.messages import MESSAGE_KEYS, ROUND_KEYS

__all__ = ["ADAPTERS"]

_IDS = {"duplicate_ids": DUPLICATE_IDS}
_PROMPTS_HELP = (
    "Questions that ask for a caption; seed and record choose one. Change them for another language or length."
)
_FRAMES = Option(
    default="reject",
    choices=("reject", "even"),
    help="What to do with more frames than limits.max_images: even keeps evenly spaced ones, with the first and the "
    "last.",
)
_CHAT_FILES = ("*.jsonl", "*.json", "*.parquet", "*.arrow", "*.jsonl.gz", "*.json.gz", "*.jsonl.zst", "*.json.zst")
_CHAT_IMAGES = (".", "images", "*.parquet")
_NOT_CHAT_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "cache-*.arrow")
"""What `datasets` writes next to the records, and its results of map"""
_COCO_2014 = ("coco/2014", "coco/train2014", "coco/val2014", "train2014", "val2014")
_COCO_FOLDERS = ("train2017", "val2017", "train2014", "val2014")
_COCO_TERMS = "Annotations CC BY 4.0; the photos are under their Flickr licences (https://cocodataset.org/#termsofuse)."
_LLAVA_WHERE = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K; images: https://cocodataset.org"
_LLAVA_TERMS = "CC BY-NC 4.0, and OpenAI's terms of use; COCO's photos are under their Flickr licences."
_MIMICIT_WHERE = "https://huggingface.co/datasets/pufanyi/MIMICIT"
_MIMICIT_TERMS = "Stated on its Hugging Face page; the images keep the terms of the datasets they come from."


def _mimicit(subset: str) -> Adapter:
    """A subset of MIMIC-IT: rows differ in its name, and CGD uses COCO's images."""
    coco = subset == "CGD"
    images = (f"MIMIC-IT/{subset}.json", f"MIMIC-IT/{subset}.parquet", f"MIMIC-IT/{subset}_*.parquet")
    return Adapter(
        read=partial(mimicit.read, coco_images=coco),
        annotations=(f"MIMIC-IT/{subset}_instructions.json",),
        images=(*images, "coco/train2017") if coco else images,
        layout=f"MIMIC-IT/{subset}_instructions.json, images in MIMIC-IT/{subset}.json or .parquet (base64 by key)"
        + (", or coco/train2017/." if coco else "."),
        where=f"{_MIMICIT_WHERE}; images: https://cocodataset.org" if coco else _MIMICIT_WHERE,
        licence=_MIMICIT_TERMS,
        options={**_IDS, "frames": _FRAMES},
        keys=mimicit.KEYS,
    )


ADAPTERS: dict[str, Adapter] = {
    "aokvqa": Adapter(
        read=aokvqa.read,
        annotations=("aokvqa/annotations/aokvqa_v1p0_train.json",),
        images=("coco/train2017", "coco/val2017"),
        other_layouts=(
            Layout(
                annotations=("aokvqa_v1p0_train.json",),
                images=("coco/train2017", "coco/val2017", "train2017", "val2017"),
            ),
        ),
        layout="aokvqa/annotations/aokvqa_v1p0_train.json, images in coco/train2017/ (validation: coco/val2017/).",
        where="https://github.com/allenai/aokvqa; images: https://cocodataset.org",
        licence="Apache 2.0 (the authors' repository); COCO's photos are under their Flickr licences.",
        options={**_IDS, "answer": aokvqa.ANSWER},
        keys=aokvqa.KEYS,
    ),
    "chat": Adapter(
        read=chat.read,
        annotations=_CHAT_FILES,
        alternatives=True,
        other_layouts=tuple(
            Layout(annotations=patterns, images=_CHAT_IMAGES)
            for patterns in (
                tuple(f"data/{pattern}" for pattern in _CHAT_FILES),
                ("*/*.parquet", "*/*.arrow"),
                ("*.tar", "data/*.tar"),
                ("*.csv", "*.tsv", "data/*.csv", "data/*.tsv"),
            )
        ),
        not_annotations=_NOT_CHAT_FILES,
        embedded=True,
        images=_CHAT_IMAGES,
        layout="JSON lines, JSON arrays, Parquet, Arrow (save_to_disk), WebDataset tars, CSV or TSV, at the root or in "
        "data/, of records in a common form (docs/chat.md): `messages`, ShareGPT's `conversations`, `query` and "
        "`response`, and others; image paths start at the root or at images/. Parquet, Arrow and tars may contain the "
        "images themselves. For a folder of images with a .txt next to each, set annotations: .",
        where="Your own files.",
        licence="Your own.",
        options={**_IDS, "form": forms.FORM, "marker": IMAGE_MARKER, "media_tags": MEDIA_TAGS},
        keys=forms.KEYS | MESSAGE_KEYS | ROUND_KEYS,
        independent_records=True,
    ),
    "coco_caption": Adapter(
        read=captions.read_coco,
        annotations=("coco_caption/dataset.json",),
        images=(*_COCO_2014, "coco/train2017", "coco/val2017"),
        other_layouts=(
            Layout(annotations=("dataset_coco.json",), images=_COCO_2014),
            Layout(annotations=("annotations/captions_*.json",), images=_COCO_FOLDERS),
            Layout(
                annotations=("coco/annotations/captions_*.json",),
                images=tuple(f"coco/{folder}" for folder in _COCO_FOLDERS),
            ),
        ),
        layout="coco_caption/dataset.json (Karpathy's split) or LAVIS's coco_karpathy_*.json, images in coco/2014/. "
        "Also COCO's own folders: annotations/captions_*.json, images in train2017/ and val2017/, or those of 2014.",
        where="https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip (Karpathy's split); "
        "official captions and images: https://cocodataset.org/#download",
        licence=_COCO_TERMS,
        options={**_IDS, "prompts": Option(default=list(captions.COCO_PROMPTS), help=_PROMPTS_HELP)},
        keys=captions.KEYS,
    ),
    "llava": Adapter(
        read=llava.read,
        annotations=("llava/detail_23k.json", "llava/complex_reasoning_77k.json"),
        images=("coco/train2017",),
        layout="llava/detail_23k.json and llava/complex_reasoning_77k.json, images in coco/train2017/.",
        where=_LLAVA_WHERE,
        licence=_LLAVA_TERMS,
        options={**_IDS, "media_tags": MEDIA_TAGS},
        keys=llava.KEYS,
        independent_records=True,
    ),
    "llava_dial": Adapter(
        read=llava.read,
        annotations=("llava/conversation_58k.json",),
        images=("coco/train2017",),
        layout="llava/conversation_58k.json, images in coco/train2017/.",
        where=_LLAVA_WHERE,
        licence=_LLAVA_TERMS,
        options={**_IDS, "media_tags": MEDIA_TAGS},
        keys=llava.KEYS,
        independent_records=True,
    ),
    "llava_otter_blend": Adapter(
        read=llava_otter.read,
        annotations=(
            "llava/detail_23k.json",
            "llava/complex_reasoning_77k.json",
            "llava/conversation_58k.json",
            "MIMIC-IT/CGD_instructions.json",
        ),
        images=("coco/train2017",),
        layout="LLaVA's three files in llava/, MIMIC-IT/CGD_instructions.json, images in coco/train2017/.",
        where=f"{_LLAVA_WHERE}; CGD: {_MIMICIT_WHERE}",
        joins=True,
        licence=f"{_LLAVA_TERMS} MIMIC-IT: stated on its Hugging Face page.",
        options=_IDS,
        keys=llava.KEYS | mimicit.KEYS,
    ),
    "minigpt4": Adapter(
        read=captions.read_minigpt4,
        annotations=("cc_sbu_align/filter_cap.json",),
        images=("cc_sbu_align/image",),
        layout="cc_sbu_align/filter_cap.json, images in cc_sbu_align/image/<image_id>.jpg.",
        where="https://github.com/Vision-CAIR/MiniGPT-4 (second-stage data)",
        licence="Stated in the authors' repository; the images are web photos of CC and SBU under their own terms.",
        options={**_IDS, "prompts": Option(default=list(captions.MINIGPT4_PROMPTS), help=_PROMPTS_HELP)},
        keys=captions.KEYS,
    ),
    "ocr_vqa": Adapter(
        read=ocr_vqa.read,
        annotations=("OCR_VQA/dataset.json",),
        images=("OCR_VQA/images",),
        other_layouts=(Layout(annotations=("OCR-VQA/data/*.parquet",), images=("OCR-VQA/data/*.parquet",)),),
        embedded=True,
        layout="OCR_VQA/dataset.json, images in OCR_VQA/images/<id><extension of imageURL>. Also Parquet with the "
        "images inside, as on the Hugging Face hub, in OCR-VQA/data/.",
        where="https://ocr-vqa.github.io; Parquet: https://huggingface.co/datasets/howard-hou/OCR-VQA",
        licence="Stated on the authors' page; the book covers belong to their publishers.",
        options={**_IDS, "image": ocr_vqa.IMAGE, "questions": ocr_vqa.QUESTIONS},
        keys=ocr_vqa.KEYS | ocr_vqa.TABLE_KEYS,
    ),
    "otter_mimicit_cgd": _mimicit("CGD"),
    "otter_mimicit_sd": _mimicit("SD"),
    "otter_mimicit_sn": _mimicit("SN"),
    "otter_mimicit_tvc": _mimicit("TVC"),
    "otter_mimicit_vst": _mimicit("VST"),
    "sparkles_dialogue": Adapter(
        read=sparkles.read,
        annotations=("SparklesDialogueCC/annotations/*.json", "SparklesDialogueVG/annotations/*.json"),
        images=("SparklesDialogueCC/images", "SparklesDialogueVG/images"),
        layout="SparklesDialogueCC/ and SparklesDialogueVG/, each with annotations/*.json and images/<image_id>.jpg.",
        where="https://github.com/HYPJUDY/Sparkles",
        licence="BSD 3-Clause (the authors' repository); the images keep the terms of CC3M and Visual Genome.",
        keys=sparkles.KEYS,
    ),
    "vqa_v2": Adapter(
        read=vqa.read,
        annotations=(
            "vqa_v2/v2_OpenEnded_mscoco_*_questions.json",
            "vqa_v2/v2_mscoco_*_annotations.json",
            "v2_OpenEnded_mscoco_*_questions.json",
            "v2_mscoco_*_annotations.json",
        ),
        alternatives=True,
        images=_COCO_2014,
        other_layouts=(
            Layout(
                annotations=(
                    "Questions/v2_OpenEnded_mscoco_*_questions.json",
                    "Annotations/v2_mscoco_*_annotations.json",
                ),
                images=("Images/mscoco/train2014", "Images/mscoco/val2014", *_COCO_2014),
            ),
        ),
        layout="v2_OpenEnded_mscoco_*_questions.json and v2_mscoco_*_annotations.json in vqa_v2/ or at the root, or "
        "in Questions/ and Annotations/; images in coco/2014/ or coco/train2014/ and coco/val2014/. Also reads "
        "VizWiz's and TextVQA's files.",
        where="https://visualqa.org; images: https://cocodataset.org",
        licence="CC BY 4.0; COCO's photos are under their Flickr licences.",
        options={**_IDS, "answer": vqa_records.ANSWER, "instruction": vqa_records.INSTRUCTION},
        keys=vqa.KEYS,
    ),
}
