"""Labels for English words from WordNet's files: which words have one, whatever their form, and bounded reading."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from finetune_api.diagnostics import ConceptProbe
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data import wordnet as module
from finetune_trainer.data.labelled import labelled
from finetune_trainer.data.wordnet import SUPERSENSES, wordnet_words
from tests.support.tokenizers import tiny, write_jsonl

WORDS: dict[str, dict[str, str]] = {
    "noun": {
        "mouse": "noun.animal", "fox": "noun.animal", "run": "noun.act", "party": "noun.group", "bus": "noun.artifact",
        "woman": "noun.person", "church": "noun.artifact", "glass": "noun.substance", "well-being": "noun.state",
        "paris": "noun.location", "who": "noun.group", "fast_food": "noun.food", "fast": "noun.act", "i": "noun.Tops",
    },
    "verb": {
        "begin": "verb.change", "run": "verb.motion", "try": "verb.social", "hope": "verb.emotion", "go": "verb.motion",
    },
    "adj": {"large": "adj.all", "atomic": "adj.pert", "red": "adj.all", "fallen": "adj.ppl", "fast": "adj.all"},
    "adv": {"quickly": "adv.all", "fast": "adv.all"},
}  # fmt: skip
EXCEPTIONS = {"noun": "mice mouse\n", "verb": "began begin\nwent go\n", "adj": "", "adv": "best well\n"}
LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
WITH_A_LABEL = {
    "fox": "noun.animal", "foxes": "noun.animal", "mice": "noun.animal", "parties": "noun.group",
    "women": "noun.person", "churches": "noun.artifact", "glasses": "noun.substance", "bus": "noun.artifact",
    "began": "verb.change", "tries": "verb.social", "hoped": "verb.emotion", "hoping": "verb.emotion",
    "went": "verb.motion", "larger": "adj.all", "largest": "adj.all", "atomic": "adj.pert", "fallen": "adj.ppl",
    "quickly": "adv.all", "well-being": "noun.state",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A database of these words; the second sense of each is another one, and lines are as in the real files."""
    for part, words in WORDS.items():
        index, data = [LICENCE], [LICENCE]
        for at, (word, supersense) in enumerate(words.items()):
            first, second = f"{1740 + 2 * at:08}", f"{1741 + 2 * at:08}"
            index.append(f"{word} {part[0]} 2 3 @ ~ #m 2 1 {first} {second}  \n")
            data.append(f"{first} {SUPERSENSES.index(supersense):02} {part[0]} 01 {word} 0 000 | a gloss  \n")
            data.append(f"{second} 15 {part[0]} 01 {word} 1 000 | another one  \n")
        for name, lines in ((f"index.{part}", index), (f"data.{part}", data), (f"{part}.exc", [EXCEPTIONS[part]])):
            (tmp_path / name).write_text("".join(lines))
    return tmp_path


def _found(folder: Path, text: str) -> dict[str, str]:
    return {text[span.start : span.end]: span.label for span in wordnet_words(folder.as_uri())(text)}


def test_a_word_has_the_lexicographer_file_of_its_first_sense_in_any_form(folder: Path) -> None:
    assert _found(folder, f"“{', '.join(WITH_A_LABEL)}.”") == WITH_A_LABEL


def test_the_names_are_those_of_lexnames() -> None:
    assert len(SUPERSENSES) == 45
    assert [SUPERSENSES[at] for at in (0, 3, 13, 28, 29, 38, 43, 44)] == [
        "adj.all", "noun.Tops", "noun.food", "noun.time", "verb.body", "verb.motion", "verb.weather", "adj.ppl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("run runs fast", "of two parts of speech or more"),
        ("Fox FOX Paris", "may be a name"),
        ("who is", "function words; for WordNet an organization, and several letters"),
        ("fox's fox2 2fox fox_run", "not a plain word"),
        ("unknown ran glass-s bu", "not in this database"),
        ("fast_food", "two words"),
        (f"fox{'s' * 100}", "too long for a word"),
    ],
)
def test_words_whose_label_the_text_does_not_say_have_none(folder: Path, text: str, why: str) -> None:
    assert _found(folder, text) == {}, why


def test_probes_take_the_labels_at_the_words_of_a_text(folder: Path, tmp_path: Path) -> None:
    chosen = random.Random(0)
    rows = [{"text": "The " + " ".join(chosen.choices(["foxes", "began", "run", "larger"], k=12))} for _ in range(20)]
    uri = write_jsonl(tmp_path / "rows.jsonl", *rows)
    probe = ConceptProbe(name="words", uri=uri, labels="wordnet", dictionary=folder.as_uri())
    found = labelled(probe, tiny(tmp_path / "model"), seed=1)
    assert found.labels == ("adj.all", "noun.animal", "verb.change")
    assert len(found.gold) == sum(word in WITH_A_LABEL for row in rows for word in row["text"].split())
    assert len(set(found.words.tolist())) == 3


def test_without_a_folder_in_the_manifest_it_is_the_one_of_wordnets_own_variable(folder: Path) -> None:
    assert wordnet_words(None, {"WNSEARCHDIR": str(folder)})("fox")
    with pytest.raises(FinetuneError, match=r"there is no .*/none/index\.noun") as refused:
        wordnet_words(None, {"WNSEARCHDIR": str(folder / "none")})
    assert refused.value.reason is Reason.InvalidSpec
    assert "apt-get install wordnet-base" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("index.noun", "fox n\n", "index.noun line 1 is not of"),
        ("index.noun", "fox n 0 0 0 0 00001740\n", "index.noun line 1 is not of"),
        ("index.noun", "fox n -3 0 1 0 00001740\n", "index.noun line 1 is not of"),
        ("index.noun", "fox n 2 0 1 0 00001740\n", "index.noun line 1 is not of"),
        ("index.noun", f"fox n {'9' * 5000} 0 1 0 00001740\n", "index.noun line 1 is not of"),
        ("index.verb", f"{LICENCE}go v 1 0 1 0 99999999\n", "data.verb lacks the sense '99999999' of 'go'"),
        ("data.adj", "00001740 99 a 01 large 0 000 | a gloss\n", "data.adj line 1 is not of"),
        ("data.adj", "00001740 \u00b2\u00b2 a 01 large 0 000 | a gloss\n", "data.adj line 1 is not of"),
        ("data.adj", "00001740", "data.adj line 1 is not of"),
        ("data.adv", "", "data.adv lacks the sense"),
        ("data.noun", f"{LICENCE}00001740 05\udcff\n", "data.noun line 2 is not of"),
        ("noun.exc", "mice\n", "noun.exc line 1 is not of"),
        ("verb.exc", "went go\n" * 31, "verb.exc has more than 30 lines"),
        ("adj.exc", "x" * 5001, "adj.exc has more than 5,000 bytes"),
    ],
)
def test_damaged_and_hostile_files_are_refused_by_their_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, words: str
) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 30)
    monkeypatch.setattr(module, "MOST_BYTES", 5_000 if name == "adj.exc" else module.MOST_BYTES)
    (folder / name).write_text(content, errors="surrogateescape")
    with pytest.raises(FinetuneError, match=words) as refused:
        wordnet_words(folder.as_uri())
    assert refused.value.reason is Reason.DataUnreadable
    assert "again" in refused.value.hint
