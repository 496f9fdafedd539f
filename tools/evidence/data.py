"""The two datasets of the evidence, made from captioned photos in LLaVA's format, and their blend file.

captions    each photo with its caption, in the form that the adapter coco_caption reads, whose metric is CIDEr
questions   short questions about each photo, made by rules, with answers of one word

What a caption names (a person, a building, ...) is asked of that photo, and of another whose caption does not name it.
What pixels show is asked likewise, or of every photo, with a median between the answers. So each question has both
answers equally often, and none can be guessed from its text.
Photos are read where they are. Neither they nor captions enter this repository.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy
from PIL import Image

THINGS: Mapping[str, str] = {
    "a person": (
        "actor actors actress artist artists athlete baby basketball bassist boy boys bride child "
        "children coach commentator couple crowd dancer dancers driver family father fans footballer "
        "friends girl girls groom guitarist guy kid kids king lady ladies man men model mother musician "
        "people performer performs person player players politician president singer soldier soldiers son "
        "student students team tourists troupe wife woman women worker workers"
    ),
    "an animal": (
        "animal animals bear bird birds butterfly cat cats chicken cow cows deer dog dogs dragonfly duck "
        "elephant fish fox frog goat horse horses insect kitten lion lizard monkey owl parrot penguin pig "
        "puppy rabbit sheep snake spider squirrel tiger turtle wolf zebra"
    ),
    "a building": (
        "apartment barn bridge building buildings cabin castle cathedral church city cottage factory home "
        "hotel house houses mosque museum palace restaurant skyline skyscraper stadium street temple "
        "tower town village"
    ),
    "food": (
        "apple banana beer berries bread breakfast cake cakes candy cheese chicken chocolate coffee "
        "cookie cookies cream dessert dinner dish drink egg food fruit fruits honey juice lemon meal meat "
        "pasta pie pineapple pizza recipe rice salad sandwich sauce soup strawberry sugar tea tomato "
        "vegetables wine"
    ),
    "a vehicle": (
        "airplane aircraft bicycle bike boat boats bus car cars engine jet motorcycle plane ship toyota "
        "tractor train truck van vehicle vehicles"
    ),
    "a plant": "blossom flower flowers forest garden grass leaf leaves plant plants rose roses tree trees",
    "something to wear": (
        "boots bracelet cap clothes clothing coat costume dress earring earrings hat jacket jewellery "
        "jewelry necklace pants ring shirt shirts shoe shoes skirt socks suit sweater tiaras uniform "
        "uniforms"
    ),
    "water": "beach coast harbor harbour lake ocean pond pool rain river sea shore water waterfall waves",
    "furniture": (
        "bath bathroom bed bedroom bench cabinet cabinetry chair chairs couch desk furniture kitchen lamp "
        "mattress rug shelf sofa table tables"
    ),
    "a drawing": (
        "art artwork cartoon clipart comic coloring drawing icon icons illustration logo painting poster "
        "sketch stamp sticker stickers vector wallpaper"
    ),
}
"""What a caption names -> words that name it"""
RARE = 60
"""A thing that fewer captions name is not asked for"""
WHITE = 235
"""Mean of a border, from 0 to 255, above which it is called white"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """image: below the folder of photos. brightness, colourfulness, border: means of its pixels, from 0 to 255."""

    id: str
    image: str
    caption: str
    brightness: float
    colourfulness: float
    border: float

    @property
    def things(self) -> frozenset[str]:
        words = set(re.findall(r"[a-z]+", self.caption.lower()))
        return frozenset(thing for thing, names in THINGS.items() if words & set(names.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    image: str
    question: str
    answer: str


def write_data(
    source: Path, out: Path, *, tokenizer: Path, image_size: int, image_tokens: int, held_out: float
) -> Path:
    """Write captions.json, questions.jsonl and blend.yaml below `out`; returns the blend file. Raises SystemExit."""
    photos = list(read_photos(source))
    out.mkdir(parents=True, exist_ok=True)
    captions = [{"image": photo.image, "caption": photo.caption} for photo in photos]
    (out / "captions.json").write_text(json.dumps(captions, indent=0))
    with (out / "questions.jsonl").open("w") as file:
        for number, question in enumerate(questions(photos)):
            file.write(json.dumps({"id": str(number), **dataclasses.asdict(question)}) + "\n")
    blend = out / "blend.yaml"
    images = image_folder(source).resolve()
    blend.write_text(
        f"""\
tokenizer: {tokenizer.resolve()}
template: chatml
image_tokens: {image_tokens}
image: {{store: resized, size: {image_size}, fit: squash}}
limits: {{max_length: 256}}
split: {{eval: {held_out}}}
datasets:
  - name: captions
    adapter: coco_caption
    annotations: captions.json
    images: {images}
    options: {{prompts: [Describe the picture.]}}
    filter: {{answer_words: {{max: 20}}}}
    epochs: 1
  - {{name: questions, adapter: chat, annotations: questions.jsonl, images: {images}, share: 8, epochs: 4}}
"""
    )
    return blend


def read_photos(source: Path) -> Iterator[Photo]:
    """Records of one image and one caption, in the order of the file. Raises SystemExit if there is no such file."""
    files = sorted(source.glob("*.json"))
    if len(files) != 1:
        raise SystemExit(f"{source}: got {len(files)} .json files, expected one in LLaVA's format")
    folder = image_folder(source)
    for record in json.loads(files[0].read_text()):
        caption = " ".join(record["conversations"][1]["value"].split())
        with Image.open(folder / record["image"]) as image:
            pixels = numpy.asarray(image.convert("RGB").resize((32, 32)), numpy.float32)
        border = numpy.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        yield Photo(
            id=str(record["id"]),
            image=record["image"],
            caption=caption,
            brightness=float(pixels.mean()),
            colourfulness=float((pixels.max(axis=2) - pixels.min(axis=2)).mean()),
            border=float(border.mean()),
        )


def image_folder(source: Path) -> Path:
    """images/ below the folder, or the folder itself."""
    return source / "images" if (source / "images").is_dir() else source


def questions(photos: Sequence[Photo]) -> list[Question]:
    """All questions, those of a photo one after the other."""
    made = [
        question
        for thing in THINGS
        if sum(thing in photo.things for photo in photos) >= RARE
        for question in _asked_of_some(
            photos, f"Is there {thing}?", {photo.id for photo in photos if thing in photo.things}
        )
    ]
    white = {photo.id for photo in photos if photo.border >= WHITE}
    made += _asked_of_some(photos, "Is the background white?", white)
    made += _asked_of_all(photos, "Bright or dark?", ("Bright", "Dark"), [photo.brightness for photo in photos])
    made += _asked_of_all(
        photos, "Colourful or gray?", ("Colourful", "Gray"), [photo.colourfulness for photo in photos]
    )
    order = {photo.image: number for number, photo in enumerate(photos)}
    return sorted(made, key=lambda question: order[question.image])


def _asked_of_some(photos: Sequence[Photo], question: str, true: Collection[str]) -> Iterator[Question]:
    """A question with the answers yes and no, each for equally many photos. true: ids of those with yes."""
    sides = [
        ("Yes", [photo for photo in photos if photo.id in true]),
        ("No", [photo for photo in photos if photo.id not in true]),
    ]
    count = min(len(side) for _, side in sides)
    for answer, side in sides:
        for photo in sorted(side, key=lambda photo: _shuffled(question, photo))[:count]:
            yield Question(image=photo.image, question=question, answer=answer)


def _shuffled(question: str, photo: Photo) -> bytes:
    """A key whose order has nothing to do with that of the file."""
    return hashlib.sha256(f"{question}{photo.image}".encode()).digest()


def _asked_of_all(
    photos: Sequence[Photo], question: str, answers: tuple[str, str], values: Sequence[float]
) -> Iterator[Question]:
    """A question of every photo: the first answer if its value is at least the median, else the second."""
    middle = median(values)
    for photo, value in zip(photos, values, strict=True):
        yield Question(image=photo.image, question=question, answer=answers[value < middle])
