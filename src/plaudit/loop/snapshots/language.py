"""Which language a text is in, as far as its script and its commonest words say. Coarse on purpose: a bound, not a classifier.

A text in a script of its own is known by its letters; one in Latin letters by which list of commonest words it uses most. Where less than
two of them occur, or two languages are even, the answer is "" and the text passes every bound.
"""

from __future__ import annotations

import re
import unicodedata

# Commonest words of running text that few of the others share.
WORDS = {
    "en": "the and of to is that it for you was with this have not are what how do can",
    "de": "der die und das ist nicht ein eine zu den mit sie auf für wie ich auch wird von",
    "fr": "le les des et est une pas que qui dans pour sur vous je avec ce il au du",
    "es": "el los las y es una que por para con se no su lo como más pero está del",
    "it": "il di che e un una per non sono con è della gli si come anche più nel",
    "pt": "o os as e é um uma que não para com se por mais como mas foi do da",
    "nl": "de het een en van is niet dat op te zijn met voor ik je ook maar aan wat",
}
SCRIPTS = {
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
}
LANGUAGES = tuple(sorted({*WORDS, *SCRIPTS.values()}))
_SETS = {code: frozenset(words.split()) for code, words in WORDS.items()}
_WORD = re.compile(r"[^\W\d_]+")
MAX_CHARS = 1000  # of a text that are looked at


def language(text: str) -> str:
    """A code of LANGUAGES, or "" where the text does not say. `ru` stands for all of Cyrillic, `ar` and `hi` for their scripts likewise."""
    head = text[:MAX_CHARS]
    if not head.isascii():
        letters = [letter for letter in head if letter.isalpha()]
        named = [SCRIPTS.get(unicodedata.name(letter, "").partition(" ")[0], "") for letter in letters]
        if "ja" in named and sum(one in ("ja", "zh") for one in named) * 2 > len(letters):
            return "ja"
        for code in set(named) - {""}:
            if named.count(code) * 2 > len(letters):
                return code
    words = [word.casefold() for word in _WORD.findall(head)]
    counts = sorted(((sum(word in known for word in words), code) for code, known in _SETS.items()), reverse=True)
    (best, code), (second, _) = counts[0], counts[1]
    return code if best >= 2 and best > second else ""
