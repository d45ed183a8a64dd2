"""Finds words of a private dialect in what people read, and says what to write instead. Part of `make check`.

    python tools/words.py [FILE ...]      # by default all texts of the repository

The list is tools/words.toml. Read are: Markdown without code, comments and strings of YAML, the chart's notes, and the
string literals and docstrings of Python files. A string counts as prose when it has at least two words.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tools" / "words.toml"
TEXTS = (
    "README.md",
    "docs/**/*.md",
    "examples/*",
    "charts/**/*.md",
    "charts/*/values.yaml",
    "charts/*/rules/*.yaml",
    "charts/*/templates/NOTES.txt",
    "crds/**/*.py",
    "operator/**/*.py",
    "operator/*.yaml",
    "tools/*.py",
    "trainer/**/*.py",
)
PROSE = re.compile(r"[A-Za-z]{2,}[,;:]? +\S*[A-Za-z]{2,}")
ALLOW = re.compile(r"words: allow ([^\n>]*?)\s*(?:-->|#\}|\*/|$)", re.M)
CODE_SPAN = re.compile(r"(`+)(?:(?!\n\s*\n).)+?\1|\]\([^)]*\)", re.S)


@dataclass(frozen=True, kw_only=True)
class Word:
    """One entry of the list: what to find, and what to write instead."""

    pattern: re.Pattern[str]
    say: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A piece of prose and the line of its file on which it begins; `last` is the last line of a literal."""

    line: int
    last: int
    prose: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A word that is on the list, where it was found."""

    path: Path
    line: int
    found: str
    word: Word

    def __str__(self) -> str:
        why = f" ({self.word.why})" if self.word.why else ""
        return f"{self.path}:{self.line}: '{self.found}': write {self.word.say}{why}"


def read_list(path: Path = LIST) -> tuple[Word, ...]:
    """The entries. Raises ValueError for a malformed one."""
    content = tomllib.loads(path.read_text())
    return tuple(word(entry) for entry in content["word"])


def word(entry: dict[str, str]) -> Word:
    if ("find" in entry) == ("pattern" in entry) or "say" not in entry:
        raise ValueError(f"an entry needs `say`, and either `find` or `pattern`: {entry}")
    choices = "|".join(choice.strip().replace("'", "['’]") for choice in entry.get("find", "").split("|"))
    source = entry.get("pattern") or rf"\b(?:{choices})\b"
    broken_across_lines = source.replace(" ", r"\s+")
    return Word(pattern=re.compile(broken_across_lines, re.I), say=entry["say"], why=entry.get("why", ""))


def texts(path: Path) -> list[Text]:
    """The prose of a file, by its kind."""
    source = path.read_text()
    if path.suffix == ".py":
        return list(python(source))
    if path.suffix in (".yaml", ".toml"):
        return list(lines_of(source))
    return [Text(line=1, last=1, prose=without_code(source))]


def python(source: str) -> Iterator[Text]:
    """String literals and docstrings; the values of an f-string are an X. Literals in a literal are one text."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            prose = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            prose = node.value
        else:
            continue
        if PROSE.search(prose):
            yield Text(line=node.lineno, last=node.end_lineno or node.lineno, prose=blanked(CODE_SPAN, prose))


def lines_of(source: str) -> Iterator[Text]:
    """YAML as it stands: keys are words of an API, so only lines with prose are read."""
    for number, line in enumerate(source.splitlines(), start=1):
        if PROSE.search(line):
            yield Text(line=number, last=number, prose=blanked(CODE_SPAN, line))


def without_code(markdown: str) -> str:
    """Markdown with fenced blocks, code spans and the targets of links replaced by blanks, line by line the same."""
    fenced = re.compile(r"^[ ]*```.*?^[ ]*```[ ]*$", re.M | re.S)
    return blanked(CODE_SPAN, blanked(fenced, markdown))


def blanked(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda match: re.sub(r"[^\n]", "·", match[0]), text)


def check(path: Path, words: tuple[Word, ...], *, shown: Path | None = None) -> list[Finding]:
    """The findings of a file, in the order of its lines."""
    source = path.read_text().splitlines()
    found = []
    for text in texts(path):
        for entry in words:
            for match in entry.pattern.finditer(text.prose):
                line = min(text.line + text.prose.count("\n", 0, match.start()), max(text.last, len(source)))
                if not allowed(match[0], source, text, line):
                    shown_as = " ".join(match[0].split())
                    found.append(Finding(path=shown or path, line=line, found=shown_as, word=entry))
    return sorted(found, key=lambda finding: finding.line)


def allowed(found: str, source: list[str], text: Text, line: int) -> bool:
    """A comment allows a word on its own line, on the next one, and anywhere in the literal that it stands at."""
    near = {line - 1, line, text.line - 1, *(range(text.line, text.last + 1))}
    comments = (ALLOW.findall(source[number - 1]) for number in near if 0 < number <= len(source))
    phrases = [phrase.strip().lower() for comment in comments for each in comment for phrase in each.split(",")]
    return any(phrase and phrase in " ".join(found.lower().split()) for phrase in phrases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="check these files")
    files = parser.parse_args().files
    words = read_list()
    checked = files or [path for pattern in TEXTS for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    findings = [
        finding
        for path in checked
        for finding in check(path, words, shown=Path(path).resolve().relative_to(ROOT))
    ]  # fmt: skip
    for finding in findings:
        print(finding)
    if findings:
        print(f"{len(findings)} findings. tools/words.toml has the list, and how to allow a word where it is right.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
