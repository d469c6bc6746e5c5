"""Names of people (PS3.5 §6.2.1) as queries compare them: folded, by group, and by sound.

Two names are the same when their groups are, whatever their case (PS3.4 §C.2.2.2.1), blanks around
components and empty components at the end. Folding accents and fuzzy matching go further where asked for.

Fuzzy (PS3.4 §C.2.2.2.1.1 leaves it to the SCP) here: the order of words and the delimiters between them do
not matter, and every word of the key must begin, or sound like, some word of the name. What sounds alike is
American Soundex with the first letter coded like the others, so that Carl is Karl and Philip is Filip; words
in other scripts are compared as they are written. Called by `harmony.archive.matching`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from harmony.archive.wildcard import has_wildcard, wildcard
from harmony.dicom.json_values import PERSON_NAME_GROUPS

__all__ = ["NameGroups", "folded", "name_groups", "name_patterns", "name_test", "sounds_like", "words"]

NameGroups: TypeAlias = tuple[str, str, str]
"""Alphabetic, ideographic and phonetic."""

# Letters that Unicode does not decompose; one for one, so that `?` still stands for one character.
_PLAIN_LETTERS = str.maketrans("øłđıħŧ", "oldiht")
# The accents of Latin, Greek and Cyrillic. Those of Arabic, Hebrew or kana are not decoration.
_accents = re.compile("[\u0300-\u036f]+")
_blanks = re.compile(r" *\^ *")
_separators = re.compile(r"[\s^=,.'\-]+")

# Soundex (US patent 1261167); vowels and h, w, y have no code.
_SOUNDS = {
    letter: digit
    for letters, digit in (("bfpv", "1"), ("cgjkqsxz", "2"), ("dt", "3"), ("l", "4"), ("mn", "5"), ("r", "6"))
    for letter in letters
}
_SOUNDEX_LENGTH = 4

_LONGEST_CACHED = 256  # characters; a group of a name has 64 (PS3.5 §6.2), whatever a peer may send


def folded(text: str, *, accents: bool = False) -> str:
    """Return one group of a name as it is compared; accents: without them, too."""
    return (_folded if len(text) <= _LONGEST_CACHED else _folded.__wrapped__)(text, accents)


@lru_cache(maxsize=8192)
def _folded(text: str, accents: bool) -> str:
    text = unicodedata.normalize("NFC", text).lower()
    if accents and not text.isascii():
        text = _accents.sub("", unicodedata.normalize("NFD", text)).translate(_PLAIN_LETTERS)
    text = unicodedata.normalize("NFC", text)
    if " " in text:
        text = _blanks.sub("^", text)
    return text.strip(" \0").rstrip("^ ")


def name_groups(value: Any, *, accents: bool = False) -> NameGroups:
    """Return the folded groups of a name: alphabetic, ideographic, phonetic; "" for those it does not have.

    value: as in the DICOM JSON Model, an object or, as some write it, a string.
    """
    if isinstance(value, Mapping):
        groups = [str(value.get(group) or "") for group in PERSON_NAME_GROUPS]
    else:
        groups = [*str(value or "").split("=", 2), "", ""]
    return (
        folded(groups[0], accents=accents),
        folded(groups[1], accents=accents),
        folded(groups[2], accents=accents),
    )


def words(group: str) -> tuple[str, ...]:
    """Return the words of a folded name, or of a key with wildcards."""
    return tuple(word for word in _separators.split(group) if word)


def name_test(text: str, *, accents: bool, fuzzy: bool) -> Callable[[NameGroups], bool]:
    """Return what tells whether the groups of a name, folded with the same `accents`, fit a key.

    A key without `=` fits any group, one with it group by group. Wild cards do not stop at `^`.
    """
    literal = _literal_test(name_groups(text, accents=accents), anywhere="=" not in text)
    if not fuzzy:
        return literal
    loose = _fuzzy_test(text)
    return lambda name: literal(name) or loose(name)


def name_patterns(pattern: str) -> list[str]:
    """Return the patterns that a folded pattern stands for: `smith^*` is also Smith without a given name."""
    shorter = pattern.rstrip("*^")
    if "^" in pattern[len(shorter) :] and pattern.endswith("*"):
        return [pattern, shorter]
    return [pattern]


def sounds_like(key: str, word: str) -> bool:
    """Tell whether a word begins with the key's word, or sounds like it; both folded, accents too."""
    return word.startswith(key) or ((sound := soundex(key)) is not None and sound == soundex(word))


def soundex(word: str) -> str | None:
    """Return how a word sounds, None when it is not made of Latin letters or of too few.

    A code of vowels only says nothing: Soundex is for words with consonants.
    """
    if len(word) < 2 or not (word.isascii() and word.isalpha()):
        return None
    word = word.replace("ph", "f").replace("th", "t")
    codes: list[str] = []
    previous = ""
    for at, letter in enumerate(word):
        code = _SOUNDS.get(letter, "")
        if code and code != previous:
            codes.append(code)
        elif not code and at == 0:
            codes.append("0")  # begins with a vowel, whichever: Emil and Amil
        if letter not in "hw":  # which do not part two letters of the same sound
            previous = code
    return "".join(codes)[:_SOUNDEX_LENGTH].ljust(_SOUNDEX_LENGTH, "0") if codes != ["0"] else None


def _literal_test(groups: NameGroups, *, anywhere: bool) -> Callable[[NameGroups], bool]:
    """Return what tells whether a name fits: a key of one group any group of it, otherwise group by group."""
    tests = [_group_test(group) if group else None for group in groups]
    first = tests[0]
    if anywhere:
        return lambda name: any(first(group) for group in name if group) if first else True
    return lambda name: all(test(group) for test, group in zip(tests, name, strict=True) if test is not None)


def _group_test(group: str) -> Callable[[str], bool]:
    if not has_wildcard(group):
        return lambda text: text == group
    tests = [wildcard(pattern) for pattern in name_patterns(group)]
    return lambda text: any(test(text) for test in tests)


def _fuzzy_test(text: str) -> Callable[[NameGroups], bool]:
    asked = [words(folded(group, accents=True)) for group in text.split("=", 2)]
    wanted = [word for group in asked for word in group]

    def fits(key: str, word: str) -> bool:
        return wildcard(key)(word) if has_wildcard(key) else sounds_like(key, word)

    def matches(name: NameGroups) -> bool:
        found = [word for group in name for word in words(folded(group, accents=True))]
        return bool(wanted) and all(any(fits(key, word) for word in found) for key in wanted)

    return matches
