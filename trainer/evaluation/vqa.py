"""VQA answers in the form in which they are compared, as the VQA challenge's evaluation page describes it.

Rule, in this order, for answers of people and of models alike:
1. line breaks and tabs are spaces;
2. marks (all that are listed, but never the apostrophe and the colon) become a space. A mark that stands next to a
   space anywhere in the answer is taken out everywhere, and so are all marks if the answer has a comma between two
   digits: "100,978" is one number. The page does not say this, the evaluation's program does it;
3. a full stop goes unless a digit follows: "3.5" stays;
4. lower case; number words up to ten, and "none", become digits; the words a, an, the go;
5. a contraction without its apostrophe gets it: "dont" becomes "don't".

It differs from the program in what look like slips there: "im" and "ive" get their apostrophe, "somebody'd" keeps it,
and people's answers pass all the steps, as the page says, where the program stops after step 3 (published answers have
the form already).
"""

from __future__ import annotations

import re

NUMBER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = frozenset({"a", "an", "the"})
MARKS = ';/[]"{}()=+\\_-><@`,?!'
# Those whose letters alone are another word (she'll, it's, we're, let's) are not among them.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've
    y'all'll you'd you'd've you'll you're you've
"""


def _lacking_one_apostrophe(words: list[str]) -> dict[str, str]:
    """Each word without each of its apostrophes in turn, and the word that is meant."""
    return {word[:at] + word[at + 1 :]: word for word in words for at, letter in enumerate(word) if letter == "'"}


CONTRACTIONS = _lacking_one_apostrophe(_CONTRACTED.split())
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")


def normalise(answer: str) -> str:
    """The form in which two answers are compared; "" if nothing but marks and articles is left."""
    text = _STOP.sub("", _without_marks(answer.replace("\n", " ").replace("\t", " ").strip()))
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_marks(text: str) -> str:
    joined = _COMMA_IN_NUMBER.search(text) is not None
    table = {ord(mark): "" if joined or f"{mark} " in text or f" {mark}" in text else " " for mark in MARKS}
    return text.translate(table)
