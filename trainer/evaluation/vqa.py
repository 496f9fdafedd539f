"""VQA accuracy as the official evaluation program computes it, and the normalisation of answers that it uses.

Source: https://visualqa.org/evaluation.html and vqaEval.py in the VQA challenge's evaluation tools
(https://github.com/GT-Vision-Lab/VQA). Where the page and the program differ, this module follows the program, because
published numbers come from it.

Steps of the normalisation, in this order:
1. newlines and tabs become spaces; leading and trailing whitespace is removed;
2. each punctuation mark in MARKS becomes a space. If the mark is next to a space anywhere in the answer, or if the
   answer has a comma between two digits, every occurrence is deleted instead: "100,978" becomes "100978";
3. a full stop is deleted unless a digit follows: "3.5" stays. Only the first 32 are deleted;
4. the answer is lower-cased; number words up to ten and "none" become digits; the words a, an, the are removed;
5. a contraction without its apostrophe gets it: "dont" becomes "don't".

Quirks of the program that are kept: "im", "ive" and "id've" stay as they are (its table has them with a capital I, but
the words are in lower case by then); "somebody'd" loses its apostrophe; only 32 full stops are deleted, since the
program passes re.UNICODE as the number of replacements; answers that all agree are not normalised (`vqa_accuracy`).
A digit is any Unicode digit, as in Python 3; the published program runs on Python 2, where only ASCII digits count.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
MAX_FULL_STOPS = 32
"""How many full stops the program deletes: it passes re.UNICODE, whose value is 32, where re.sub takes the count"""

ANSWERS_TO_MATCH = 3
"""An answer that this many people gave is fully right"""

# Not in the list: words that are another word without their apostrophe (she'll, it's, we're, let's).
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(words: list[str]) -> dict[str, str]:
    """Each word without each of its apostrophes in turn -> the word with all of them."""
    return {word[:at] + word[at + 1 :]: word for word in words for at, letter in enumerate(word) if letter == "'"}


CONTRACTIONS = {**_without_one_apostrophe(_CONTRACTED.split()), "somebody'd": "somebodyd"}
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official VQA accuracy of one answer, from 0 to 1. answers: of the people who were asked, at least one.

    The mean over all ways to leave out one person of min(people among the others who gave the answer / 3, 1). With ten
    people: 0.3, 0.6, 0.9 and 1 for an answer that 1, 2, 3 and more of them gave (Antol et al. 2015). With n < 4 people
    the highest score is (n - 1) / 3, so it is always 0 with one.

    If all answers are the same string, neither side is normalised: "Yes" scores 0 where ten people answered "yes".
    """
    stripped = [_strip(answer) for answer in answers]
    if len(set(stripped)) == 1:
        return _leave_one_out(_strip(prediction), stripped)
    return _leave_one_out(normalise(prediction), [normalise(answer) for answer in answers])


def vqa_accuracy_normalised(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy with both sides always normalised, and with a use for fewer than four answers; from 0 to 1.

    It differs from `vqa_accuracy` in two cases. Answers that all agree are normalised as well: "Yes" scores 1 where ten
    people answered "yes". With one to three answers, which could not reach 1, a match with any of them scores 1.
    """
    normalised, predicted = [normalise(answer) for answer in answers], normalise(prediction)
    if len(answers) <= ANSWERS_TO_MATCH:
        return float(predicted in normalised)
    return _leave_one_out(predicted, normalised)


def normalise(answer: str) -> str:
    """The form in which two answers are compared; "" if only punctuation and articles are left."""
    text = _FULL_STOP.sub("", _without_marks(_strip(answer)), count=MAX_FULL_STOPS)
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _leave_one_out(predicted: str, answers: Sequence[str]) -> float:
    matches = [answer == predicted for answer in answers]
    return sum(min(1, (sum(matches) - own) / ANSWERS_TO_MATCH) for own in matches) / len(matches)


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    delete = _COMMA_BETWEEN_DIGITS.search(text) is not None
    return text.translate(
        {ord(mark): "" if delete or f"{mark} " in text or f" {mark}" in text else " " for mark in MARKS}
    )
