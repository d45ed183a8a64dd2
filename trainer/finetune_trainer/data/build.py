"""All data sets of a manifest, tokenised into a folder. Each file is read once (training files once more where labels
are to be found in them, or rows to be drawn), one at a time, with a bounded part of it in memory, and as little of a
row as its format looks at."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, compress
from pathlib import Path
from typing import TypeVar

import numpy as np

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.regularization import EARLIER_ROWS
from finetune_trainer.random_streams import NEWEST
from finetune_trainer.statistics import ReplayedTask, SourceStatistics, SplitStatistics, Statistics
from finetune_trainer.store.sources import SourceFile
from finetune_trainer.store.trained_on import TrainedTask

from .classification import Classification, labels_of
from .corpus import Corpus, Flags
from .earlier_rows import Draw, EarlierRows, Fingerprints, Measuring, as_data, shares
from .encode import Limits, encode
from .formats import FORMATS, TELLING, Format, Text, detect
from .json_errors import FAULTS, unreadable
from .read import Keys, Row, iter_rows
from .spelling import spelling_of
from .split import draw, fingerprint, fold_of, hold_out, is_replayed, key_of, mark_of, sample_key
from .tokenizer import Tokenizer
from .unused_fields import CONVERSATIONAL, without, without_in_turns
from .writer import CorpusWriter, Facts, nothing_left, select

SLICE = "slice:"
CONVERSATIONS = ("chat", "completion")
"""Formats of which every key with a meaning in a conversation must reach the text."""
TEXTS = "rows.jsonl"
"""Training rows as text, where augmentation needs them; `texts.npy` next to the corpus says where each starts."""


T = TypeVar("T")


@dataclass(frozen=True)
class Build:
    spec: Data
    seed: int
    tokenizer: Tokenizer
    files: Mapping[str, Sequence[SourceFile]]
    """Files by the URI in the manifest."""
    tokenizer_digest: str
    digests: dict[str, str] = field(default_factory=dict)
    """Digests of what was read, by file, as `iter_rows` yields them: filled in while remote files are read."""
    local: Mapping[str, str] = field(default_factory=dict)
    """Digests of files of this machine."""
    columns: dict[str, set[str]] = field(default_factory=dict)
    """The columns of a source that are not read: filled in while it is read."""
    streams: int = NEWEST
    """Generation of random streams."""
    group_by: str | None = None
    """Key of rows that are not independent of each other; see Marks."""
    replay: str | None = None
    """URI of the general text to replay; where data.general has the same one, its documents are shared out."""
    earlier: EarlierRows | None = None
    """Training rows of earlier tasks, of which a sample is replayed instead."""
    earlier_files: tuple[Mapping[str, Sequence[SourceFile]], ...] = ()
    """Of each of these tasks, by the URI of the source."""

    fold: tuple[int, int] | None = None
    """(index, count) of a part of the training rows that is a data set of its own, see `fold_of`."""

    def write(self, folder: Path) -> None:
        """FinetuneError for everything that is wrong with the files."""
        form = self._format()
        facts, held, sources, splits = self._train(folder, form)
        known = facts.twins[~held & (facts.documents > 0)]
        leaks: list[str] = []
        twins, general = [facts.twins[held]], np.zeros(0, np.uint64)
        for name, uri in self._held_out_files():
            shared = name == "general" and uri == self.replay
            splits[name], other = self._encode(folder, name, uri, form, leave_out=is_replayed if shared else None)
            if name == "general":
                general = other.twins
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
        measured = np.unique(np.concatenate([*twins, general]))
        np.save(folder / "measured.npy", measured)
        replayed: tuple[ReplayedTask, ...] = ()
        if self.earlier is not None:
            splits["replay"], replayed = self._earlier(folder / "replay", self.earlier, measured)
        elif self.replay:
            not_replayed = frozenset(measured.tolist())
            splits["replay"], _ = self._encode(folder, "replay", self.replay, form, leave_out=not_replayed.__contains__)
        self._close(folder, form, splits, sources, replayed)
        (folder / "pad_id.json").write_text(json.dumps(self.tokenizer.pad))

    def write_one(self, folder: Path, name: str, uri: str) -> None:
        """One source alone, as `name`. Its format, and labels if it has any, are in the spec."""
        form = self._format()
        split, _ = self._encode(folder, name, uri, form)
        self._close(folder, form, {name: split}, ())

    def _close(
        self,
        folder: Path,
        form: Format,
        splits: dict[str, SplitStatistics],
        sources: tuple[SourceStatistics, ...],
        replayed: tuple[ReplayedTask, ...] = (),
    ) -> None:
        earlier = self.earlier.tasks if replayed and self.earlier else ()
        digests = {uri: digest for task in earlier for uri, digest in task.files.items()}  # they were checked
        digests |= {f.uri: self.digests[f.uri] for files in self.files.values() for f in files}
        statistics = Statistics(
            format=form.name,
            labels=form.labels if isinstance(form, Classification) else (),
            splits=splits,
            sources=sources,
            replayed=replayed,
            digests=digests,
            tokenizer=self.tokenizer_digest,
        )
        (folder / "statistics.json").write_text(statistics.model_dump_json(by_alias=True))

    def _held_out_files(self) -> Iterator[tuple[str, str]]:
        spec = self.spec
        named = {"validation": spec.validation, "test": spec.test, "general": spec.general}
        yield from ((name, source.uri) for name, source in named.items() if source and source.uri)
        yield from ((SLICE + part.name, part.uri) for part in spec.slices)

    def _rows(self, uri: str, form: Format, *more: str) -> Iterator[Row]:
        """Of a source, with what the format looks at and `more` keys; conversations as messages, however it spells
        them."""
        spelling = spelling_of(self._first(uri, TELLING)) if form.name == "chat" else None
        wanted, ignored = (*(spelling or form).keys, *more), self.spec.ignore_keys
        conversation = form.name in CONVERSATIONS

        def told(row: Row) -> Row:
            row = without(row, wanted, ignored, conversation=conversation)
            return without_in_turns(spelling.told(row), ignored) if spelling else row

        keys = (*wanted, *ignored, *(CONVERSATIONAL if conversation else ()))
        return map(_guarded(told), self._read(uri, keys, self.columns.setdefault(uri, set())))

    def _read(self, uri: str, keys: Keys, others: set[str]) -> Iterator[Row]:
        for file in self.files[uri]:
            digest = yield from iter_rows(file, keys, others)
            self.digests.setdefault(file.uri, digest)

    def _sample(self, source: TrainSource, form: Format, *more: str) -> tuple[Iterator[Row], int | None]:
        """The rows of a source to train on, and how many it has where these are not all: then it is read twice, since
        what is kept of a row the first time is eight bytes."""
        if source.max_rows is None:
            return self._rows(source.uri, form, *more), None
        keys = (sample_key(row, seed=self.seed, streams=self.streams) for row in self._rows(source.uri, form, *more))
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
        """The manifest's format, else the one that the first training row has."""
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
        if name == "text":
            return Text(self.tokenizer, append_eos=self.spec.append_eos)
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
        more = {self.spec.validation.group_by if self.spec.validation else None, self.group_by}
        ends, given_rows = [0], []
        ignored = self.spec.ignore_keys
        with CorpusWriter(given, limits, answers=answers, texts=texts, ignored=ignored) as writer:
            for source in self.spec.train:
                count = 0
                rows, all_rows = self._sample(source, form, *sorted(filter(None, more)))
                documents = map(_guarded(form.document), rows)
                for outcome in encode(documents, self.tokenizer, limits):
                    row = outcome.document.row
                    key = key_of(row, self.spec.validation, seed=self.seed)
                    identity = form.identity(row)
                    mark = mark_of(row, identity, self.group_by)
                    writer.add(outcome, mark=mark, twin=fingerprint(identity), key=key)
                    count += 1
                ends.append(ends[-1] + count)
                given_rows.append(all_rows or count)
            writer.check()
        facts = writer.facts()
        held = np.zeros(len(facts.keys), np.bool_)
        if not (self.spec.validation and self.spec.validation.uri):
            held = hold_out(facts.keys, facts.twins, self.spec.validation)
        parts = {"validation": held}
        if self.fold is not None:
            index, count = self.fold
            grouped = bool(self.spec.validation and self.spec.validation.group_by)
            none = held | (facts.documents == 0)  # rows that were dropped would leave a fold without any
            parts["fold"] = fold_of(facts.keys, facts.twins, none, grouped=grouped, index=index, count=count)
            held = held | parts["fold"]
        splits = self._separate(folder, given, facts, {"train": ~held, **parts}, limits)
        sources = tuple(
            SourceStatistics(
                uri=source.uri,
                files=len(self.files[source.uri]),
                rows=rows_of_source,
                drawn=end - start if source.max_rows else None,
                documents=int(facts.documents[start:end][~held[start:end]].sum()),
                held_out=int(facts.documents[start:end][held[start:end]].sum()),
                columns=tuple(sorted(self.columns.get(source.uri, ()))),
            )
            for source, rows_of_source, start, end in zip(self.spec.train, given_rows, ends, ends[1:], strict=False)
        )
        return facts, held, sources, splits

    def _separate(
        self, folder: Path, given: Path, facts: Facts, parts: Mapping[str, Flags], limits: Limits
    ) -> dict[str, SplitStatistics]:
        corpus = Corpus.load(given)
        texts = np.load(given / "texts.npy") if self.spec.augmentation else None
        splits: dict[str, SplitStatistics] = {}
        for name, rows in parts.items():
            if not rows.any():
                continue
            documents = np.repeat(rows, facts.documents)
            if documents.all():
                given.rename(folder / name)
            else:
                select(corpus, documents, folder / name)
            part = Corpus.load(folder / name)
            splits[name] = facts.statistics(part, rows)
            if not len(part):
                raise nothing_left(name, splits[name], limits, longest=facts.longest)
        if texts is not None:
            np.save(folder / "texts.npy", texts[np.repeat(parts["train"], facts.documents)])
        shutil.rmtree(given, ignore_errors=True)
        return splits

    def _earlier(
        self, folder: Path, earlier: EarlierRows, measured: Fingerprints
    ) -> tuple[SplitStatistics, tuple[ReplayedTask, ...]]:
        """The sample of all tasks, one task after another."""
        left_out = Measuring(measured, earlier.measured)
        draws = [
            self._draw(task, files, left_out) for task, files in zip(earlier.tasks, self.earlier_files, strict=True)
        ]
        samples = [draw.sample(EARLIER_ROWS) for draw in draws]
        quotas = shares([len(sample) for sample in samples], EARLIER_ROWS)
        with CorpusWriter(folder, Limits(self.spec.sequence_length, "drop")) as writer:
            drawn = zip(draws, samples, quotas, strict=True)
            replayed = [draw.write(writer, sample, quota) for draw, sample, quota in drawn]
        statistics = writer.facts().statistics(Corpus.load(folder))
        left = sum(each.left_out for each in replayed)
        return statistics.model_copy(update={"left_out": left}), tuple(replayed)

    def _draw(self, task: TrainedTask, files: Mapping[str, Sequence[SourceFile]], measured: Measuring) -> Draw:
        """Read as its own job read it: digests of parts of files depend on the columns that are read."""
        of_task = replace(
            self,
            spec=as_data(task, sequence_length=self.spec.sequence_length),
            seed=task.seed,
            files=files,
            digests=dict(self.local),
            columns={},
        )
        form = of_task._format()
        return Draw(
            task=task,
            rows=lambda: chain.from_iterable(
                of_task._sample(source, form, *task.keys)[0] for source in of_task.spec.train
            ),
            identity=_guarded(form.identity),
            document=_guarded(form.document),
            tokenizer=self.tokenizer,
            limits=Limits(of_task.spec.sequence_length, of_task.spec.overlong),
            digests=of_task.digests,
            measured=measured,
            seed=self.seed,
        )

    def _encode(
        self, folder: Path, name: str, uri: str, form: Format, *, leave_out: Callable[[int], bool] | None = None
    ) -> tuple[SplitStatistics, Facts]:
        """`leave_out`: by fingerprint, rows that belong to another data set."""
        left_out = 0
        if name in ("general", "replay"):  # whatever it is, and if it has labels, they are not the task's
            detected = self._detected(uri, labelled=False)
            form = Text(self.tokenizer, append_eos=False) if detected == "text" else FORMATS[detected](self.tokenizer)
        answers = form.answers if isinstance(form, Classification) else ()
        limits = Limits(self.spec.sequence_length, self.spec.overlong)
        ignored, by_file = self.spec.ignore_keys, name == "general"
        with CorpusWriter(folder / name, limits, answers=answers, ignored=ignored, by_file=by_file) as writer:
            rows = self._rows(uri, form, *([self.group_by] if self.group_by else []))
            for outcome in encode(map(_guarded(form.document), rows), self.tokenizer, limits):
                identity = form.identity(outcome.document.row)
                twin = fingerprint(identity)
                if leave_out is not None and leave_out(twin):
                    left_out += 1
                    continue
                mark = mark_of(outcome.document.row, identity, self.group_by)
                writer.add(outcome, mark=mark, twin=twin)
            writer.check()
        facts, corpus = writer.facts(), Corpus.load(folder / name)
        statistics = facts.statistics(corpus).model_copy(update={"left_out": left_out})
        if left_out and not statistics.rows:
            raise _all_left_out(name, left_out)
        if not len(corpus):
            raise nothing_left(name, statistics, limits, longest=facts.longest)
        return statistics, facts


def _guarded(change: Callable[[Row], T]) -> Callable[[Row], T]:
    """DataUnreadable that names row and column for whatever error Python raises on unexpected values."""

    def guarded(row: Row) -> T:
        try:
            return change(row)
        except FAULTS as error:
            raise unreadable(error, row.fields, row) from error

    return guarded


def _all_left_out(name: str, rows: int) -> FinetuneError:
    what = "all are replayed" if name == "general" else "all are held-out or general rows, which are never replayed"
    return FinetuneError(
        Reason.NothingToTrain,
        f"{name}: none of the {rows} rows is left, since {what}",
        "Set regularization.replay.uri to other text, or add documents.",
    )


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
