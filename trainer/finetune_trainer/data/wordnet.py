"""Labels for English words, from the files of a WordNet database: the supersense of a word, such as noun.food.

A supersense is the lexicographer file of a word's first sense (lexnames(5WN)). The database is a folder with the files
index.PART, data.PART and PART.exc for noun, verb, adj and adv (wndb(5WN)); it is not part of this project. An inflected
word is looked up by its exceptions and by the detachment rules of morphy(7WN).

The text does not say which of its senses a word has, so a word that is in several parts of speech has no label, nor
has one with a capital letter, which may be a name, nor a function word: `who` is the World Health Organization in
WordNet, and `might` is power.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from finetune_api.failures import FinetuneError, Reason
from finetune_api.names import PREFIX_DATA
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.local import LocalFolder
from finetune_trainer.store.opening import open_folder

from .python_labels import Span

SEARCHED: Final = "WNSEARCHDIR"
"""WordNet's own variable for the folder."""
INSTALLED = Path("/usr/share/wordnet")
"""Where Debian's package wordnet-base has it."""
MOST_BYTES = 50_000_000
"""Of a file: the largest one of WordNet 3.0 has 15 MB."""
MOST_LINES = 500_000
"""Of a file: the longest one has 117,827."""

SUPERSENSES: Final = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession",
    "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time",
    "verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption",
    "verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession",
    "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
"""By number: lexnames(5WN)."""

_PARTS: Final = ("noun", "verb", "adj", "adv")
_DETACHED: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "noun": (
        ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
        ("ies", "y"),
    ),
    "verb": (
        ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
"""(ending, what takes its place), in the order in which morphy tries them."""
_FUNCTION_WORDS = frozenset({
    "across", "along", "another", "around", "been", "before", "below", "beneath", "besides", "between", "beyond",
    "both", "but", "despite", "did", "doing", "either", "every", "had", "having", "however", "its", "many", "may",
    "might", "neither", "not", "once", "ones", "other", "several", "someone", "though", "throughout", "underneath",
    "were", "whatever", "while", "who", "why", "within", "yes", "yet",
})  # fmt: skip
"""Those of three letters or more that have one part of speech in WordNet."""
_WORD = re.compile(r"[\w'\u2019-]+")
_PLAIN = re.compile(r"[a-z]+(?:-[a-z]+)*")
_LETTERS = range(3, 41)
"""Of a word that is looked up. Shorter ones are function words and abbreviations."""

_HINT: Final = (
    "Install WordNet's files (Debian and Ubuntu: apt-get install wordnet-base), or set dictionary to a folder with "
    "index.noun, data.noun, noun.exc and those of verb, adj and adv. A pod does not have what is installed elsewhere: "
    "copy the folder to a bucket or a volume."
)


def wordnet_words(dictionary: str | None, environ: Mapping[str, str] = os.environ) -> Callable[[str], list[Span]]:
    """What finds the labels of a text. `dictionary`: URI of the folder; without it WNSEARCHDIR, or Debian's.
    InvalidSpec where the files are missing, DataUnreadable where they are not of WordNet's form."""
    lexicon = Lexicon(_folder(dictionary, environ))

    def words(text: str) -> list[Span]:
        found = (Span(*match.span(), lexicon.supersense(match[0]) or "") for match in _WORD.finditer(text))
        return [span for span in found if span.label]

    return words


class Lexicon:
    """The words of a database, without those of several words: about 90,000 in WordNet 3.0, read in a second."""

    def __init__(self, folder: Folder) -> None:
        self._senses = {part: dict(_senses(folder, part)) for part in _PARTS}
        self._exceptions = {part: dict(_exceptions(folder, part)) for part in _PARTS}

    def supersense(self, word: str) -> str | None:
        """None for a word that has none, or several parts of speech."""
        if len(word) not in _LETTERS or word in _FUNCTION_WORDS or not _PLAIN.fullmatch(word):
            return None
        found = [sense for part in _PARTS if (sense := self._sense(word, part))]
        return found[0] if len(found) == 1 else None

    def _sense(self, word: str, part: str) -> str | None:
        senses = self._senses[part]
        return next((senses[form] for form in (word, *self._bases(word, part)) if form in senses), None)

    def _bases(self, word: str, part: str) -> Iterator[str]:
        if base := self._exceptions[part].get(word):
            yield base
            return
        if part == "noun" and word.endswith("ss"):
            return
        for ending, instead in _DETACHED[part]:
            if word.endswith(ending):
                yield word.removesuffix(ending) + instead


def _folder(dictionary: str | None, environ: Mapping[str, str]) -> Folder:
    if dictionary is not None:
        return open_folder(dictionary, prefix=PREFIX_DATA, environ=environ)
    path = Path(environ.get(SEARCHED) or INSTALLED)
    return LocalFolder(str(path), path)


def _senses(folder: Folder, part: str) -> Iterator[tuple[str, str]]:
    """(word, supersense of its first sense)."""
    index, data = f"index.{part}", f"data.{part}"
    first: dict[str, str] = {}
    for number, line in _lines(folder, index):
        fields = line.split()
        try:
            count = int(fields[2])
            lemma, offset = fields[0], fields[-count]
        except (ValueError, IndexError):
            raise _other_form(folder, index, number) from None
        if not 0 < count <= len(fields) - 6:  # before the senses: word, part, two counts, pointers, two counts
            raise _other_form(folder, index, number)
        if "_" not in lemma:
            first[lemma] = offset
    names = dict.fromkeys(first.values(), "")
    for number, line in _lines(folder, data):
        if line[:8] in names:
            lexicographer = line[9:11]
            if not lexicographer.isdecimal() or int(lexicographer) >= len(SUPERSENSES):
                raise _other_form(folder, data, number)
            names[line[:8]] = SUPERSENSES[int(lexicographer)]
    for lemma, offset in first.items():
        if not names[offset]:
            raise _damaged(f"{_named(folder, data)} lacks the sense {offset[:20]!r} of {lemma[:40]!r}")
        yield lemma, names[offset]


def _exceptions(folder: Folder, part: str) -> Iterator[tuple[str, str]]:
    """(inflected word, base form)."""
    name = f"{part}.exc"
    for number, line in _lines(folder, name):
        fields = line.split()
        if len(fields) < 2:
            raise _other_form(folder, name, number)
        yield fields[0], fields[1]


def _lines(folder: Folder, name: str) -> Iterator[tuple[int, str]]:
    """(number, text), without those of the licence, which begin with two spaces."""
    entry = folder.stat(name)
    if entry is None:
        raise FinetuneError(
            Reason.InvalidSpec, f"labels: wordnet needs WordNet's files, and there is no {_named(folder, name)}", _HINT
        )
    if entry.size > MOST_BYTES:
        raise _damaged(f"{_named(folder, name)} has more than {MOST_BYTES:,} bytes")
    number = 0
    try:
        for number, line in enumerate(io.BytesIO(folder.read(name)), start=1):
            if number > MOST_LINES:
                raise _damaged(f"{_named(folder, name)} has more than {MOST_LINES:,} lines")
            if not line.startswith(b"  "):
                yield number, line.decode()
    except UnicodeDecodeError:
        raise _other_form(folder, name, number) from None


def _named(folder: Folder, name: str) -> str:
    return f"{folder.uri.rstrip('/')}/{name}"


def _other_form(folder: Folder, name: str, line: int) -> FinetuneError:
    return _damaged(f"{_named(folder, name)} line {line} is not of WordNet's form")


def _damaged(message: str) -> FinetuneError:
    return FinetuneError(Reason.DataUnreadable, message, "Install or copy WordNet's files again; they belong together.")
