"""FineTuneJob.spec.data: rows to train on, rows to measure on, and what happens to them on the way."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import ApiModel, Rule
from .fields import LIST_MAP, MAP_KEYS, DataUri, Name, ObjectName
from .rules import exactly_one

DEFAULT_SEQUENCE_LENGTH = 2048


class Credentials(ApiModel):
    secret_name: ObjectName = Field(
        description="Secret in the job's namespace; its keys become environment variables, e.g. AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, HF_TOKEN."
    )


class DataSource(ApiModel):
    uri: DataUri = Field(
        description="Files ending in .jsonl, .txt (both also .gz or .zst), .parquet, .arrow or .feather: s3://, gs://, "
        "az://, pvc:// or file:///, or hf://datasets/org/name[@revision]/path. One file; a folder by a / at the end; "
        "or several by a pattern, such as s3://bucket/train/*.jsonl."
    )


class TrainSource(DataSource):
    weight: float = Field(
        1.0, gt=0, le=1000, description="How often an epoch sees each row: 2 is twice, 0.5 another half each epoch."
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="A sample of so many of its rows, by their content and training.seed, held-out rows included; the "
        "same in every attempt. Default: all.",
    )


class Validation(ApiModel):
    uri: DataUri | None = Field(None, description="A file of its own.")
    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        None, description="Share of the training rows to hold out instead."
    )
    group_by: str | None = Field(
        None, min_length=1, max_length=128, description="With fraction: rows with one value of this key stay together."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("uri", "fraction", where="data.validation"),
        Rule(
            cel="!has(self.groupBy) || has(self.fraction)",
            message="data.validation.groupBy needs fraction: it says which rows a split must keep together",
            holds=lambda new, _: "groupBy" not in new or "fraction" in new,
        ),
    )


class Slice(ApiModel):
    name: Name = Field(description="As reported.")
    uri: DataUri = Field(description="Held-out rows of one domain, judged against the base model.")


class Classification(ApiModel):
    labels: (
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(min_length=2, max_length=64)]
        | None
    ) = Field(
        None,
        description="The label words. Default: the distinct labels of the training rows.",
        json_schema_extra={LIST_MAP: "set"},
    )
    instruction: str | None = Field(
        None, min_length=1, max_length=4096, description="What is asked of the model before each text."
    )


class Augmentation(ApiModel):
    """Changes what the model is asked (a text to classify, a prompt, the user's turns), never what it has to answer."""

    type: Literal["casing", "characterNoise", "templates", "backoff"] = Field(
        description="casing: lower case, capitals or title case. characterNoise: typing mistakes. templates: other "
        "wordings around the text. backoff: words swapped for words of other training rows of the same label."
    )
    probability: float = Field(gt=0, le=1, description="Of each training row in each epoch, on its own.")
    rate: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        None, description="Of characterNoise and backoff: share of the letters or words. Default 0.05."
    )
    templates: (
        Annotated[tuple[Annotated[str, Field(min_length=6, max_length=1024)], ...], Field(min_length=1, max_length=32)]
        | None
    ) = Field(None, description="Of templates: wordings with {text} in them.", json_schema_extra={LIST_MAP: "set"})

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.templates) == (self.type == 'templates')",
            message="data.augmentation needs templates for type templates, and for no other type",
            holds=lambda new, _: ("templates" in new) == (new["type"] == "templates"),
        ),
        Rule(
            cel="!has(self.templates) || self.templates.all(t, t.contains('{text}'))",
            message="each of data.augmentation's templates needs {text}, where the text goes",
            holds=lambda new, _: all("{text}" in template for template in new.get("templates", ())),
        ),
        Rule(
            cel="!has(self.rate) || self.type in ['characterNoise', 'backoff']",
            message="data.augmentation's rate is only for characterNoise and backoff: remove it",
            holds=lambda new, _: "rate" not in new or new["type"] in ("characterNoise", "backoff"),
        ),
    )


class Data(ApiModel):
    train: Annotated[tuple[TrainSource, ...], Field(min_length=1, max_length=64)] = Field(
        description="Training rows.", json_schema_extra={LIST_MAP: "atomic"}
    )
    validation: Validation | None = Field(
        None,
        description="For early stopping and the best checkpoint. Default: 1/20 of the training rows, at most 500.",
    )
    test: DataSource | None = Field(
        None, description="Touched once, after training (and once before, for the base model)."
    )
    slices: Annotated[tuple[Slice, ...], Field(max_length=32)] = Field(
        (),
        description="Held-out domains, judged against the base model.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]},
    )
    general: DataSource | None = Field(
        None, description="General text: what must not be forgotten, in bits per byte before and after."
    )
    format: Literal["auto", "chat", "completion", "text", "classification"] = Field(
        "auto",
        description="chat {messages} (or ShareGPT's or Alpaca's keys), completion {prompt, completion}, text {text}, "
        "classification {text, label}; auto looks at the rows.",
    )
    classification: Classification | None = Field(None, description="For format classification.")
    sequence_length: int = Field(
        DEFAULT_SEQUENCE_LENGTH,
        ge=8,
        le=1048576,
        description="The longest sequence, in tokens; at most what the model can place, and so is the default.",
    )
    overlong: Literal["fail", "drop", "truncate"] = Field(
        "fail",
        description="What to do with rows that are longer (text is split into windows instead). Always reported.",
    )
    augmentation: Annotated[tuple[Augmentation, ...], Field(max_length=16)] = Field(
        (),
        description="Variants of training rows, one after another in this order; never of rows that are measured.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    allow_duplicates: bool = Field(
        False, description="Train although validation or test rows are among the training rows too."
    )
    packing: bool = Field(True, description="Put several documents into one row, isolated from each other.")
    credentials: Credentials | None = Field(None, description="For private buckets.")

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.classification) || !has(self.format) || self.format in ['auto', 'classification']",
            message="data.classification is only for format classification (or auto): remove it or change data.format",
            holds=lambda new, _: "classification" not in new or new.get("format", "auto") in ("auto", "classification"),
        ),
        Rule(
            cel="!has(self.augmentation) || self.augmentation.size() == 0 || !has(self.format) || "
            "self.format != 'text'",
            message="data.augmentation changes what is asked, and rows of format text are all answer: remove it",
            holds=lambda new, _: not new.get("augmentation") or new.get("format") != "text",
        ),
    )
