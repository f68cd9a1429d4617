"""Whole numbers out of what models and people say."""

import re

MORE_THAN_TEN = 11  # as GeckoNum's annotators have it
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
NUMBERS = {**{word: number for number, word in enumerate(WORDS)}, "dozen": 12, "no": 0, "none": 0}
_TOKEN = re.compile(r"[a-z]+|[-+]?\d[\d.,/]*\+?")
_OVER_TEN = re.compile(r"\b(?:(?:more|greater) than|over|above) (?:10|ten)\b|(?<!\S)10\+")
_BOUNDED = re.compile(
    rf"\b(?:(?:more|greater|fewer|less) than|at (?:least|most)|up to|or (?:more|fewer|less)|half"
    rf"|(?:over|above|under|below) (?:\d|(?:{'|'.join(NUMBERS)})\b))"
)
_SCALES = {"hundred", "hundreds", "thousand", "thousands", "million", "millions", "dozens"}


def parse_count(answer: str) -> int | None:
    """The one whole number an answer names, in digits or words up to twenty; "a dozen" is 12, "no" and "none" 0, and
    more than ten `MORE_THAN_TEN`.

    None where it names none, or different ones, or a bound, range or fraction: such an answer is wrong whatever was
    asked for.
    """
    text = _OVER_TEN.sub(str(MORE_THAN_TEN), answer.lower())
    if _BOUNDED.search(text):
        return None
    found: set[int] = set()
    for token in _TOKEN.findall(text):
        if token in _SCALES:
            return None
        if token in NUMBERS:
            found.add(NUMBERS[token])
        elif not token.isalpha():
            digits = token.rstrip(".,")
            if not digits.isdecimal() or len(digits) > 4:
                return None
            found.add(int(digits))
    return found.pop() if len(found) == 1 else None


_UNCHANGED = {"fish", "sheep", "deer", "aircraft"}
_IRREGULAR = {
    "leaf": "leaves",
    "loaf": "loaves",
    "knife": "knives",
    "mouse": "mice",
    "person": "people",
    "potato": "potatoes",
}


def plural(noun: str) -> str:
    """Of an English noun such as those of the counting prompts, "cinnamon stick" or "black fly"."""
    start, gap, last = noun.rpartition(" ")
    if last in _UNCHANGED:
        return noun
    if last in _IRREGULAR:
        return start + gap + _IRREGULAR[last]
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if last.endswith(("s", "x", "z", "ch", "sh")) else "s")
