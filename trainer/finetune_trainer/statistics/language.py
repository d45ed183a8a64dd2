"""A guess at the language of a text: by the script of its letters, and in Latin script by its most frequent words.

It is for a person who looks at data, to notice rows that do not belong there: nothing is decided by it. Short texts,
code and languages without words in the table have none.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_READ = 4000
"""Characters of a text that are looked at."""
_FEWEST = 2
_LEAST = 0.05
"""Of the words of a text, how many have to be in the table: two, and one in twenty."""

_WORDS = {
    "English": "the of and to is that it for was with as are be this have from not you an in on at by my your we our "
    "can how what why when where after does do did has had there no or if but will would",
    "German": "der die und das ist nicht ein eine zu den mit auf für sich dem auch ich wird im bei mein meine wir sie "
    "es wie was wann wo nach hat kann keine kein von aber oder wenn noch",
    "French": "le la les et des est une pas que dans pour qui sur vous ce au avec nous je mon ma un du en il ne plus "
    "comment quand où mais ou si être été sont",
    "Spanish": "el los las que en una por con del es para se su lo como más no mi un la de me ha está cómo cuándo "
    "dónde pero si al le son",
    "Portuguese": "o os que não em uma para com do da é no na se por mais você são",
    "Italian": "il che di non è un una per sono con del della gli si anche ma le come",
    "Dutch": "het een van en niet dat is op te zijn met voor ik aan ook maar wordt er",
    "Polish": "nie się na jest że do w z to jak ale po czy co dla od przez tak",
    "Swedish": "och att det som en är på inte av för med den jag ett har till om men",
    "Turkish": "ve bir bu için çok ile değil ne daha gibi var ama kadar olarak sonra ben",
    "Indonesian": "yang dan di itu tidak dengan ini untuk dari dalam akan pada juga saya ke adalah",
}
_TABLE = {language: frozenset(words.split()) for language, words in _WORDS.items()}

_SCRIPTS = {
    "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", "CJK": "Chinese", "THAI": "Thai",
    "GREEK": "Greek", "HEBREW": "Hebrew", "GEORGIAN": "Georgian", "ARMENIAN": "Armenian",
}  # fmt: skip
"""First words of Unicode's names of letters that one language has to itself, more or less."""


def guess(text: str) -> str:
    """`German`, `Cyrillic script`; empty where there is nothing to go by.

    >>> guess("Wo ist mein Paket und wann wird das Geld erstattet?")
    'German'
    """
    text = text[:_READ]
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    if not scripts:
        return ""
    script, count = scripts.most_common(1)[0]
    if script == "LATIN":
        return _by_words(text)
    if script == "CJK" and (scripts["HIRAGANA"] + scripts["KATAKANA"]) * 10 > count:  # kanji between kana
        return "Japanese"
    return _SCRIPTS.get(script) or f"{script.capitalize()} script"


def _by_words(text: str) -> str:
    words = re.findall(r"[^\W\d_]+", text.lower())
    found = Counter({language: sum(word in known for word in words) for language, known in _TABLE.items()})
    (language, most), (_, next_most) = found.most_common(2)
    return language if most >= max(_FEWEST, _LEAST * len(words)) and most > next_most else ""


def shares(texts: Iterable[str]) -> dict[str, float]:
    """Of the texts, how many seem to be in which language, the most frequent first; `unknown` for those without."""
    counts = Counter(guess(text) or "unknown" for text in texts)
    return {language: count / counts.total() for language, count in counts.most_common()}
