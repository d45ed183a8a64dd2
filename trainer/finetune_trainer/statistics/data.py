"""Statistics of the data, shown before the first step. The package `data` counts, the report shows."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from finetune_api.base import ApiModel

from .vocabulary import VocabularyRecord


class SplitStatistics(ApiModel):
    rows: int = Field(description="In the files.")
    documents: int = Field(description="To train or measure: without dropped rows, long texts in windows.")
    tokens: int
    trained_tokens: int
    trained_bytes: int
    longest: int = Field(description="Tokens of the longest document.")
    overlong: int = Field(0, description="Rows longer than data.sequenceLength.")
    dropped: int = Field(0, description="Of these, rows left out; the others were truncated.")
    split: int = Field(0, description="Rows of text cut into windows of data.sequenceLength.")
    untrained: int = Field(0, description="Rows left out because no token of them is trained, such as empty texts.")
    retold: int = Field(
        0,
        description="Conversations with a document for each answer: the chat template renders earlier ones "
        "differently.",
    )
    closed: int = Field(
        0, description="Conversations whose answers got the end-of-sequence token: the chat template ends no turn."
    )
    emptied: int = Field(0, description="Rows of which truncation cut off every trained token.")
    ignored: dict[str, int] = Field({}, description="By key of data.ignoreKeys: rows that had it.")
    left_out: int = Field(
        0, description="Rows of general text that were left out: replayed ones are not measured, nor the reverse."
    )
    duplicates: int = Field(0, description="Rows that are among the training rows too.")

    @property
    def truncated(self) -> int:
        return self.overlong - self.dropped

    def line(self) -> str:
        share = 100 * self.trained_tokens / max(1, self.tokens)
        parts = [
            f"{self.rows:,} rows",
            f"{self.documents:,} documents" if self.documents != self.rows else "",
            f"{self.tokens:,} tokens ({share:.0f} % trained)",
            f"longest {self.longest:,}",
            f"{self.overlong:,} too long: {self.dropped:,} dropped, {self.truncated:,} truncated"
            if self.overlong
            else "",
            f"{self.split:,} cut into windows" if self.split else "",
            f"{self.untrained:,} with nothing to train" if self.untrained else "",
            f"{self.retold:,} conversations rendered once for each answer" if self.retold else "",
            f"{self.closed:,} conversations with eos_token after each answer, since the chat template ends none"
            if self.closed
            else "",
            f"{self.emptied:,} truncated before their first trained token" if self.emptied else "",
            *(f"{key} ignored in {rows:,} rows" for key, rows in self.ignored.items()),
            f"{self.left_out:,} left out, so that no document is both replayed and measured" if self.left_out else "",
            f"{self.duplicates:,} also among the training rows" if self.duplicates else "",
        ]
        return ", ".join(part for part in parts if part)


class SourceStatistics(ApiModel):
    """One entry of data.train."""

    uri: str
    files: int
    rows: int = Field(description="In the files.")
    drawn: int | None = Field(None, description="Of these, rows drawn by data.train[].maxRows. None: all.")
    documents: int = Field(description="That train: without held-out and dropped rows, long texts in windows.")
    held_out: int = Field(0, description="Documents of its rows that are held out for validation.")
    columns: tuple[str, ...] = Field((), description="Of its rows, those that the format does not look at.")

    @property
    def unused(self) -> str:
        shown = ", ".join(self.columns[:20]) + (", …" if len(self.columns) > 20 else "")
        return f"columns not used: {shown}" if self.columns else ""


class ReplayedTask(ApiModel):
    """An earlier task, of whose training rows a sample is replayed."""

    name: str
    rows: int = Field(description="Training rows that may be replayed, copies once.")
    drawn: int = Field(description="Of these, rows in the sample.")
    documents: int = Field(description="That are replayed: without dropped rows, long texts in windows.")
    left_out: int = Field(0, description="Rows that were left out, since they measure a task.")

    def line(self) -> str:
        left_out = f"; {self.left_out:,} left out, since they measure a task" if self.left_out else ""
        return f"{self.drawn:,} of {self.rows:,} training rows, {self.documents:,} documents to replay{left_out}"


class Statistics(ApiModel):
    """Provenance and size of all data of a run."""

    format: str
    labels: tuple[str, ...] = ()
    splits: dict[str, SplitStatistics] = Field(description="train, validation, test, general, replay, slice:<name>.")
    sources: tuple[SourceStatistics, ...] = Field((), description="Of data.train, in its order.")
    replayed: tuple[ReplayedTask, ...] = Field((), description="With replay.source earlier: the tasks, in their order.")
    digests: dict[str, str] = Field(description="By URI: sha256 of the file, or of its rows with prefix `rows:`.")
    tokenizer: str = Field(description="sha256 of the tokenizer's files.")

    def lines(self) -> Iterator[str]:
        """For a log."""
        labels = f", labels {', '.join(self.labels)}" if self.labels else ""
        yield f"format {self.format}{labels}"
        for name, split in self.splits.items():
            yield f"{name}: {split.line()}"
        for task in self.replayed:
            yield f"replay of task {task.name}: {task.line()}"
        for source in self.sources:
            if len(self.sources) > 1 or source.drawn is not None:
                drawn = f", {source.drawn:,} drawn by maxRows" if source.drawn is not None else ""
                yield f"source {source.uri}: {source.files} files, {source.rows:,} rows{drawn}"
            if source.unused:
                yield f"source {source.uri}: {source.unused}"

    def __str__(self) -> str:
        return "; ".join(self.lines())


class LayoutStatistics(ApiModel):
    """How the first steps are laid out in memory."""

    steps: int = Field(description="Steps that were looked at, from the first one on.")
    micro_batches: int = Field(description="Of these steps, on all processes.")
    documents: int
    tokens: int = Field(description="Of the documents.")
    computed: int = Field(description="With padding.")
    unpacked: int = Field(description="With padding, if each document had a row of its own.")

    @property
    def padding_ratio(self) -> float:
        return 1 - self.tokens / max(1, self.computed)

    def line(self) -> str:
        without = 1 - self.tokens / max(1, self.unpacked)
        return (
            f"in the first {self.steps:,} steps {100 * self.padding_ratio:.1f} % padding, packing efficiency "
            f"{100 * (1 - self.padding_ratio):.1f} % ({100 * (1 - without):.1f} % without packing), "
            f"{self.micro_batches / max(1, self.steps):.1f} micro-batches a step"
        )


class AugmentationStatistics(ApiModel):
    """What data.augmentation did to the training rows of a whole run."""

    type: str
    probability: float
    rows: int = Field(description="Rows seen, counted each time.")
    chosen: int = Field(description="Of these, rows that it was applied to.")

    def line(self) -> str:
        return f"augmentation {self.type}: {self.chosen:,} of {self.rows:,} rows (probability {self.probability:g})"


class DataRecord(ApiModel):
    """The data of a run, as its record keeps it."""

    statistics: Statistics | None = None
    weights: dict[str, float] = Field(default_factory=dict, description="Of sources whose weight is not 1.")
    layout: LayoutStatistics | None = None
    augmentation: tuple[AugmentationStatistics, ...] = ()
    max_rows: int | None = Field(None, description="evaluation.maxRows.")
    drawn_from: dict[str, int] = Field(
        default_factory=dict, description="Documents of each held-out data set that has more than maxRows."
    )
    replayed: str = Field("", description="Why so many rows are replayed, where the manifest leaves it open.")
    vocabulary: VocabularyRecord | None = Field(None, description="With spec.vocabulary: what became of the tokenizer.")

    def lines(self) -> Iterator[tuple[str, str]]:
        """(data set or topic, sentence)."""
        if self.statistics is not None:
            yield from ((name, split.line()) for name, split in self.statistics.splits.items())
            yield from (("replay", f"task {task.name}: {task.line()}") for task in self.statistics.replayed)
            for source in self.statistics.sources:
                if source.drawn is not None:
                    yield source.uri, f"{source.drawn:,} of {source.rows:,} rows, drawn by maxRows"
                if source.unused:
                    yield source.uri, source.unused
        for name, documents in self.drawn_from.items():
            yield name, f"{self.max_rows:,} of {documents:,} documents are measured, drawn by evaluation.maxRows"
        if self.replayed:
            yield "replay", self.replayed
        if self.vocabulary is not None:
            yield from (("vocabulary", line) for line in self.vocabulary.lines())
        yield from ((uri, f"weight {weight:g} in each epoch") for uri, weight in self.weights.items())
        if self.layout is not None:
            yield "layout", self.layout.line()
        yield from (("augmentation", each.line()) for each in self.augmentation)
