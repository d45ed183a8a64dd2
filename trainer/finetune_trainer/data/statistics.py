"""What is in the data, in numbers that a person reads before the first step."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from finetune_api.base import ApiModel


class SplitStatistics(ApiModel):
    rows: int = Field(description="In the files.")
    documents: int = Field(description="To train or measure: without dropped rows, long texts in windows.")
    tokens: int
    trained_tokens: int
    trained_bytes: int
    longest: int = Field(description="Tokens of the longest document.")
    overlong: int = Field(0, description="Rows longer than data.sequenceLength.")
    dropped: int = Field(0, description="Of these, rows left out; the others were truncated.")
    untrained: int = Field(0, description="Rows left out because no token of them is trained, such as empty texts.")
    duplicates: int = Field(0, description="Rows that are among the training rows too.")

    def line(self) -> str:
        share = 100 * self.trained_tokens / max(1, self.tokens)
        parts = [
            f"{self.rows:,} rows",
            f"{self.documents:,} documents" if self.documents != self.rows else "",
            f"{self.tokens:,} tokens ({share:.0f} % trained)",
            f"longest {self.longest:,}",
            f"{self.overlong:,} too long: {self.dropped:,} dropped, {self.overlong - self.dropped:,} truncated"
            if self.overlong
            else "",
            f"{self.untrained:,} with nothing to train" if self.untrained else "",
            f"{self.duplicates:,} also among the training rows" if self.duplicates else "",
        ]
        return ", ".join(part for part in parts if part)


class Statistics(ApiModel):
    """Provenance and size of all data of a run."""

    format: str
    labels: tuple[str, ...] = ()
    splits: dict[str, SplitStatistics] = Field(description="train, validation, test, general, slice:<name>.")
    digests: dict[str, str] = Field(description="sha256 of each file, by URI.")
    tokenizer: str = Field(description="sha256 of the tokenizer's files.")

    def lines(self) -> Iterator[str]:
        """For a log."""
        labels = f", labels {', '.join(self.labels)}" if self.labels else ""
        yield f"format {self.format}{labels}"
        for name, split in self.splits.items():
            yield f"{name}: {split.line()}"

    def __str__(self) -> str:
        return "; ".join(self.lines())
