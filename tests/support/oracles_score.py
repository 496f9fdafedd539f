"""Slow, obvious versions of the scores: letter by letter, every subset written out, every n-gram in every sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

Words = Sequence[str]


_CONTRACTIONS = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
    didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't
    havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's Id've=I'd've
    I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd itd've=it'd've it'dve=it'd've itll=it'll let's=let's maam=ma'am
    mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've mustnt=mustn't mustve=must've
    neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at
    shant=shan't shed've=she'd've she'dve=she'd've she's=she's shouldve=should've shouldnt=shouldn't
    shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
    somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd someoned've=someone'd've
    someone'dve=someone'd've someonell=someone'll someones=someone's somethingd=something'd
    somethingd've=something'd've something'dve=something'd've somethingll=something'll thats=that's thered=there'd
    thered've=there'd've there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've
    they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've
    we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're whats=what's whatve=what've whens=when's
    whered=where'd wheres=where's whereve=where've whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's
    whove=who've whyll=why'll whyre=why're whys=why's wont=won't wouldve=would've wouldnt=wouldn't
    wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll y'allll=y'all'll yall'd've=y'all'd've
    y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've you'dve=you'd've youll=you'll youre=you're
    youve=you've"""
OFFICIAL_CONTRACTIONS = dict(pair.split("=") for pair in _CONTRACTIONS.split())
_NUMBERS = "none=0 zero=0 one=1 two=2 three=3 four=4 five=5 six=6 seven=7 eight=8 nine=9 ten=10"
OFFICIAL_NUMBERS = dict(pair.split("=") for pair in _NUMBERS.split())
OFFICIAL_MARKS = [*";/[]{}()=+_-><@,?!", chr(34), chr(92), chr(96)]
"""The tables as they are in the official VQA evaluation program, entry by entry"""


def official_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy, from what the official evaluation program does with one question of its annotation file."""
    people = {number: _spaced(answer) for number, answer in enumerate(answers, start=1)}
    predicted = _spaced(prediction)
    agreed = all(answer == people[1] for answer in people.values())
    if not agreed:
        people = {number: official_form(answer) for number, answer in people.items()}
        predicted = official_form(predicted)
    scores = []
    for left_out in people:
        others = [number for number in people if number != left_out]
        same = len([number for number in others if people[number] == predicted])
        scores.append({0: 0.0, 1: 1 / 3, 2: 2 / 3}.get(same, 1.0))
    return math.fsum(scores) / len(scores)


def official_form(answer: str) -> str:
    """An answer after the program's two steps: punctuation, then digits and articles."""
    words = []
    for word in _punctuated(_spaced(answer)).lower().split():
        word = OFFICIAL_NUMBERS.get(word, word)
        if word not in ("a", "an", "the"):
            words.append(OFFICIAL_CONTRACTIONS.get(word, word))
    return " ".join(words)


def _punctuated(text: str) -> str:
    letters = list(text)
    number = any(
        before.isdecimal() and comma == "," and after.isdecimal()
        for before, comma, after in zip(letters, letters[1:], letters[2:], strict=False)
    )
    deleted = {mark for mark in OFFICIAL_MARKS if number}
    for left, right in pairwise(letters):
        deleted |= {mark for mark in OFFICIAL_MARKS if {left, right} == {mark, " "}}
    marked = ["" if letter in deleted else " " if letter in OFFICIAL_MARKS else letter for letter in letters]
    kept: list[str] = []
    left_stops = 32
    rest = "".join(marked)
    for index, letter in enumerate(rest):
        digit_follows = rest[index + 1 : index + 2].isdecimal()
        if letter == "." and not digit_follows and left_stops:
            left_stops -= 1
        else:
            kept.append(letter)
    return "".join(kept)


def _spaced(text: str) -> str:
    return "".join(" " if letter in "\n\t" else letter for letter in text).strip()


def soft_score(matches: Sequence[bool]) -> float:
    """VQA accuracy from which people gave the answer: leave out each in turn; three of the others are enough."""
    scores = []
    for left_out in range(len(matches)):
        others = [match for person, match in enumerate(matches) if person != left_out]
        scores.append(min(sum(others) / 3, 1))
    return sum(scores) / len(scores)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each candidate: cosine of clipped tf-idf vectors, damped where lengths differ; 0 to 10."""
    return [
        10
        * sum(
            sum(_similarity(candidate, reference, order, references, sigma) for reference in own) / len(own)
            for order in (1, 2, 3, 4)
        )
        / 4
        for candidate, own in zip(candidates, references, strict=True)
    ]


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], order: int) -> float:
    """Corpus BLEU: geometric mean of clipped precisions, times the penalty for answers that are too short."""
    logarithms = []
    for size in range(1, order + 1):
        right = total = 0
        for candidate, own in zip(candidates, references, strict=True):
            for ngram, count in _ngrams(candidate, size).items():
                total += count
                right += min(count, max(_ngrams(reference, size)[ngram] for reference in own))
        if not right:
            return 0.0
        logarithms.append(math.log(right / total))
    candidate_words = sum(len(candidate) for candidate in candidates)
    expected = 0
    for candidate, own in zip(candidates, references, strict=True):
        expected += min((abs(len(reference) - len(candidate)), len(reference)) for reference in own)[1]
    penalty = 1.0 if candidate_words >= expected else math.exp(1 - expected / candidate_words)
    return penalty * math.exp(sum(logarithms) / order)


def _similarity(
    candidate: Words, reference: Words, order: int, references: Sequence[Sequence[Words]], sigma: float
) -> float:
    ours, theirs = _weights(candidate, order, references), _weights(reference, order, references)
    norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
    if not norms:
        return 0.0
    dot = sum(min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in ours.items())
    return dot / norms * math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * sigma**2))


def _weights(words: Words, order: int, references: Sequence[Sequence[Words]]) -> dict[tuple[str, ...], float]:
    weights = {}
    for ngram, count in _ngrams(words, order).items():
        images = sum(any(_ngrams(reference, order)[ngram] for reference in own) for own in references)
        weights[ngram] = count * math.log(len(references) / max(images, 1))
    return weights


def _ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))
