"""tools/words.py finds the phrases of tools/words.toml in prose, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import words

WORDS = words.read_list()


def found(tmp_path: Path, name: str, content: str) -> list[str]:
    path = tmp_path / name
    path.write_text(content)
    return [f"{finding.line}: {finding.found}" for finding in words.check(path, WORDS)]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The value is no number.", ["1: is no number"]),
        ("The run begins anew.", ["1: anew"]),
        ("Steps must be a whole number, more than nothing.", ["1: whole number", "1: more than nothing"]),
        ("What is told\nlies in the bucket.", ["1: told", "2: lies"]),
        ("The gang did not come\ntogether.", ["1: come together"]),
        ("The value is not a number.", []),
        ("There is no finalizer, and the field is no longer needed.", []),
        ("The operator runs behind a corporate proxy, behind its feature gate.", []),
        ("The operator runs behind schedule.", ["1: behind"]),
        ("A heading\n\nwith `told` in code and [a link](anew.md).", []),
        ("```sh\nbegin anew\n```\nand anew", ["4: anew"]),
    ],
)
def test_markdown(tmp_path: Path, sentence: str, expected: list[str]) -> None:
    assert found(tmp_path, "page.md", sentence) == expected


def test_python_strings_and_docstrings_are_read_but_not_code(tmp_path: Path) -> None:
    source = '''"""A module.

    That goes
    on here."""
    beside = {"anew": 1}  # a comment that is told nothing
    raise ValueError(f"{beside} is no {anew}")
    message = ("one line, "
               "then anew")
    '''
    assert found(tmp_path, "module.py", source.replace("\n    ", "\n")) == ["3: goes on", "6: is no X", "7: anew"]


def test_a_pattern_sees_the_words_around_the_values_of_an_f_string(tmp_path: Path) -> None:
    assert found(tmp_path, "module.py", 'f"reading {a} goes on at {b}"') == ["1: goes on"]


def test_yaml_comments_and_descriptions(tmp_path: Path) -> None:
    assert found(tmp_path, "rule.yaml", "anew: 1\nsummary: begins anew  # beside it\n") == ["2: anew", "2: beside"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("page.md", "<!-- words: allow anew, beside -->\nThe run begins anew, beside another."),
        ("page.md", "The run begins anew. <!-- words: allow anew -->"),
        ("module.py", 'message = "the run begins anew"  # words: allow anew'),
        ("module.py", '# words: allow anew\nmessage = """the run\n\nbegins anew"""'),
        ("rule.yaml", "# words: allow anew\nsummary: begins anew"),
    ],
)
def test_a_comment_allows_a_word(tmp_path: Path, name: str, content: str) -> None:
    assert found(tmp_path, name, content) == []
    assert found(tmp_path, name, content.replace("allow anew", "allow lies")) != []


def test_an_entry_without_a_replacement_is_refused() -> None:
    with pytest.raises(ValueError, match="say"):
        words.word({"find": "anew"})
