"""All data sets of a manifest, tokenised into a folder. Each file is read once (training files once more where labels
are to be found in them, or rows to be drawn), one at a time, with a bounded part of it in memory, and as little of a
row as its format looks at."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.statistics import SourceStatistics, SplitStatistics, Statistics
from finetune_trainer.store.sources import SourceFile

from .classification import Classification, labels_of
from .corpus import Corpus, Flags
from .encode import Limits, encode
from .formats import FORMATS, TELLING, Format, detect
from .read import Keys, Row, iter_rows
from .spelling import spelling_of
from .split import draw, fingerprint, hold_out, key_of
from .tokenizer import Tokenizer
from .writer import CorpusWriter, Facts, nothing_left, select

SLICE = "slice:"
TEXTS = "rows.jsonl"
"""Training rows as text, where augmentation needs them; `texts.npy` beside the corpus says where each starts."""


@dataclass(frozen=True)
class Build:
    spec: Data
    seed: int
    tokenizer: Tokenizer
    files: Mapping[str, Sequence[SourceFile]]
    """By the URI of the manifest."""
    tokenizer_digest: str
    digests: dict[str, str] = field(default_factory=dict)
    """Of what was read, by file, as `iter_rows` says it: filled in while remote files are read."""

    def write(self, folder: Path) -> None:
        """FinetuneError for everything that is wrong with the files."""
        form = self._format()
        facts, held, sources, splits = self._train(folder, form)
        known = facts.twins[~held & (facts.documents > 0)]
        leaks: list[str] = []
        twins = [facts.twins[held]]
        for name, uri in self._held_out_files():
            splits[name], other = self._encode(folder, name, uri, form)
            if name == "general":
                continue
            copies = np.isin(other.twins, known) & (other.documents > 0)
            splits[name] = splits[name].model_copy(update={"duplicates": int(copies.sum())})
            twins.append(other.twins)
            if copies.any() and not name.startswith(SLICE):
                leaks.append(_leak(name, other, copies))
        if "validation" in splits and held.any():
            copies = np.isin(facts.twins, known) & held & (facts.documents > 0)
            splits["validation"] = splits["validation"].model_copy(update={"duplicates": int(copies.sum())})
            leaks += [_leak("validation", facts, copies)] if copies.any() else []
        if leaks and not self.spec.allow_duplicates:
            raise FinetuneError(Reason.DataLeak, "; ".join(leaks))
        np.save(folder / "heldout.npy", np.unique(np.concatenate(twins)))
        statistics = Statistics(
            format=form.name,
            labels=form.labels if isinstance(form, Classification) else (),
            splits=splits,
            sources=sources,
            digests={f.uri: self.digests[f.uri] for files in self.files.values() for f in files},
            tokenizer=self.tokenizer_digest,
        )
        (folder / "statistics.json").write_text(statistics.model_dump_json(by_alias=True))
        (folder / "pad_id.json").write_text(json.dumps(self.tokenizer.pad))

    def _held_out_files(self) -> Iterator[tuple[str, str]]:
        spec = self.spec
        named = {"validation": spec.validation, "test": spec.test, "general": spec.general}
        yield from ((name, source.uri) for name, source in named.items() if source and source.uri)
        yield from ((SLICE + part.name, part.uri) for part in spec.slices)

    def _rows(self, uri: str, form: Format, *more: str) -> Iterator[Row]:
        """Of a source, with what the format looks at and `more` keys; conversations as messages, however it spells
        them."""
        spelling = spelling_of(self._first(uri, TELLING)) if form.name == "chat" else None
        read = self._read(uri, (*(spelling or form).keys, *more))
        return map(spelling.told, read) if spelling else read

    def _read(self, uri: str, keys: Keys) -> Iterator[Row]:
        for file in self.files[uri]:
            digest = yield from iter_rows(file, keys)
            self.digests.setdefault(file.uri, digest)

    def _sample(self, source: TrainSource, form: Format, *more: str) -> tuple[Iterator[Row], int | None]:
        """The rows of a source to train on, and how many it has where these are not all: then it is read twice, since
        what is kept of a row the first time is eight bytes."""
        if source.max_rows is None:
            return self._rows(source.uri, form, *more), None
        keys = (key_of(row, None, seed=self.seed) for row in self._rows(source.uri, form, *more))
        order = np.fromiter(keys, np.uint64)
        return compress(self._rows(source.uri, form, *more), draw(order, source.max_rows)), len(order)

    def _detected(self, uri: str, *, labelled: bool) -> str:
        """The format of a file's first row."""
        try:
            return detect(self._first(uri, TELLING), labelled=labelled)
        except FinetuneError as error:
            if error.reason is Reason.DataUnreadable:
                detect(self._first(uri, None), labelled=labelled)  # says which keys there are instead
            raise

    def _first(self, uri: str, keys: Keys) -> Row:
        with closing(iter_rows(self.files[uri][0], keys)) as rows:
            return next(rows)

    def _format(self) -> Format:
        """As the manifest says, else as the first training row looks."""
        wanted = self.spec.classification
        name: str = self.spec.format
        if name == "auto":
            name = "classification" if wanted else self._detected(self.spec.train[0].uri, labelled=True)
        if name == "text" and self.spec.augmentation:
            raise FinetuneError(
                Reason.InvalidSpec,
                "data.augmentation changes what the model is asked, and rows of format text are all answer",
                "Remove data.augmentation.",
            )
        if name != "classification":
            return FORMATS[name](self.tokenizer)
        labels = wanted.labels if wanted and wanted.labels else None
        if labels is None:
            files = [file for source in self.spec.train for file in self.files[source.uri]]
            labels = labels_of(row for file in files for row in iter_rows(file, ("label",)))
        return Classification.of(self.tokenizer, labels, wanted.instruction if wanted else None)

    def _train(
        self, folder: Path, form: Format
    ) -> tuple[Facts, Flags, tuple[SourceStatistics, ...], dict[str, SplitStatistics]]:
        """All training rows are tokenised, then those that are held out are taken away."""
        given = folder / "given"
        limits = Limits(self.spec.sequence_length, self.spec.overlong)
        answers = form.answers if isinstance(form, Classification) else ()
        texts = folder / TEXTS if self.spec.augmentation else None
        group = self.spec.validation.group_by if self.spec.validation else None
        ends, given_rows = [0], []
        with CorpusWriter(given, limits, answers=answers, texts=texts) as writer:
            for source in self.spec.train:
                count = 0
                rows, all_rows = self._sample(source, form, *([group] if group else []))
                documents = map(form.document, rows)
                for outcome in encode(documents, self.tokenizer, limits):
                    row = outcome.document.row
                    key = key_of(row, self.spec.validation, seed=self.seed)
                    writer.add(outcome, twin=fingerprint(form.identity(row)), key=key)
                    count += 1
                ends.append(ends[-1] + count)
                given_rows.append(all_rows or count)
            writer.check()
        facts = writer.facts()
        held = np.zeros(len(facts.keys), np.bool_)
        if not (self.spec.validation and self.spec.validation.uri):
            held = hold_out(facts.keys, facts.twins, self.spec.validation)
        splits = self._separate(folder, given, facts, held, limits)
        sources = tuple(
            SourceStatistics(
                uri=source.uri,
                files=len(self.files[source.uri]),
                rows=rows_of_source,
                drawn=end - start if source.max_rows else None,
                documents=int(facts.documents[start:end][~held[start:end]].sum()),
            )
            for source, rows_of_source, start, end in zip(self.spec.train, given_rows, ends, ends[1:], strict=False)
        )
        return facts, held, sources, splits

    def _separate(
        self, folder: Path, given: Path, facts: Facts, held: Flags, limits: Limits
    ) -> dict[str, SplitStatistics]:
        corpus = Corpus.load(given)
        texts = np.load(given / "texts.npy") if self.spec.augmentation else None
        of_document = np.repeat(held, facts.documents)
        splits: dict[str, SplitStatistics] = {}
        for name, rows, documents in (("train", ~held, ~of_document), ("validation", held, of_document)):
            if not rows.any():
                continue
            if documents.all():
                given.rename(folder / name)
            else:
                select(corpus, documents, folder / name)
            part = Corpus.load(folder / name)
            splits[name] = facts.statistics(part, rows)
            if not len(part):
                raise nothing_left(name, splits[name], limits)
        if texts is not None:
            np.save(folder / "texts.npy", texts[~of_document])
        shutil.rmtree(given, ignore_errors=True)
        return splits

    def _encode(self, folder: Path, name: str, uri: str, form: Format) -> tuple[SplitStatistics, Facts]:
        if name == "general":  # whatever it is, and if it has labels, they are not the task's
            form = FORMATS[self._detected(uri, labelled=False)](self.tokenizer)
        answers = form.answers if isinstance(form, Classification) else ()
        limits = Limits(self.spec.sequence_length, self.spec.overlong)
        with CorpusWriter(folder / name, limits, answers=answers) as writer:
            for outcome in encode(map(form.document, self._rows(uri, form)), self.tokenizer, limits):
                writer.add(outcome, twin=fingerprint(form.identity(outcome.document.row)))
            writer.check()
        facts, corpus = writer.facts(), Corpus.load(folder / name)
        statistics = facts.statistics(corpus)
        if not len(corpus):
            raise nothing_left(name, statistics, limits)
        return statistics, facts


def _leak(name: str, facts: Facts, copies: Flags) -> str:
    first = facts.places[int(np.argmax(copies))]
    return f"{name}: {int(copies.sum())} of {len(copies)} rows are among the training rows too, the first is {first}"


def sha256(path: Path, name: str = "") -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise FinetuneError(Reason.DataNotFound, f"there is no file {name or path}") from error
    except OSError as error:
        raise FinetuneError(Reason.DataUnreadable, f"{name or path} cannot be read: {error.strerror}") from error
