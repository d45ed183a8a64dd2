"""FineTuneJob.spec.data: training and evaluation data, and how rows are read, augmented and packed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from . import sizes
from .base import ApiModel, Rule, exactly_one
from .fields import LIST_MAP, MAP_KEYS, DataUri, Name, ObjectName

DEFAULT_SEQUENCE_LENGTH = 2048


class Credentials(ApiModel):
    secret_name: ObjectName = Field(
        description="Name of a Secret in the job's namespace. Its keys become environment variables, e.g. "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, HF_TOKEN."
    )


class DataSource(ApiModel):
    uri: DataUri = Field(
        description="One file, a folder (ending in /) or a pattern such as s3://bucket/train/*.jsonl. Schemes: s3://, "
        "gs://, az://, pvc://, file:/// and hf://datasets/org/name[@revision]/path. File types: .jsonl and .txt (also "
        ".gz or .zst), .parquet, .arrow and .feather."
    )


class TrainSource(DataSource):
    name: Name | None = Field(
        None,
        description="Name of the source, such as the task that it teaches. Its held-out validation rows are reported "
        "apart, as a slice of that name.",
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often each row is used per epoch: 2 means twice, 0.5 means half of the rows, a different half "
        "in the next epoch.",
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="Use a random sample of this many rows, held-out rows included. The sample depends on row content "
        "and training.seed, and is the same in every attempt. Default: all rows.",
    )


class Mixing(ApiModel):
    """How much of an epoch each source of data.train is."""

    temperature: float = Field(
        ge=1,
        le=100,
        description="Shares of the sources are in proportion to weight * rows^(1 / temperature): 1 is by size, 2 by "
        "its square root, and 100 almost the same for each. An epoch has as many rows as without. Small sources are "
        "repeated, of large ones an epoch has a part, another one each time.",
    )


class Validation(ApiModel):
    uri: DataUri | None = Field(None, description="Separate validation data.")
    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        None, description="Fraction of the training rows to hold out for validation, instead of uri."
    )
    group_by: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Together with fraction: rows with the same value of this key are never split.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("uri", "fraction", where="data.validation"),
        Rule(
            cel="!has(self.groupBy) || has(self.fraction)",
            message="data.validation.groupBy needs fraction: it names the key whose rows the split keeps together",
            holds=lambda new, _: "groupBy" not in new or "fraction" in new,
        ),
    )


class Slice(ApiModel):
    name: Name = Field(description="Name of the slice in reports and status.")
    uri: DataUri = Field(description="Held-out rows of one domain, on which base and tuned model are compared.")


class Classification(ApiModel):
    labels: (
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(min_length=2, max_length=64)]
        | None
    ) = Field(
        None,
        description="Class labels. Default: the distinct labels of the training rows.",
        json_schema_extra={LIST_MAP: "set"},
    )
    instruction: str | None = Field(
        None, min_length=1, max_length=4096, description="Instruction that is put before each text."
    )


class Augmentation(ApiModel):
    """Varies the input of the model (a text to classify, a prompt, the user's turns), never the expected answer."""

    type: Literal["casing", "characterNoise", "templates", "backoff"] = Field(
        description="casing: lower, upper or title case. characterNoise: typing errors. templates: the text inside "
        "one of several templates. backoff: words replaced by words from other training rows of the same label."
    )
    probability: float = Field(
        gt=0, le=1, description="Probability of changing a training row, drawn for each row and epoch."
    )
    rate: Annotated[float, Field(gt=0, le=0.5)] | None = Field(
        None, description="For characterNoise and backoff: fraction of letters or words to change. Default 0.05."
    )
    templates: (
        Annotated[tuple[Annotated[str, Field(min_length=6, max_length=1024)], ...], Field(min_length=1, max_length=32)]
        | None
    ) = Field(
        None,
        description="For type templates: strings that contain {text}.",
        json_schema_extra={LIST_MAP: "set"},
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.templates) == (self.type == 'templates')",
            message="data.augmentation needs templates for type templates, and for no other type",
            holds=lambda new, _: ("templates" in new) == (new["type"] == "templates"),
        ),
        Rule(
            cel="!has(self.templates) || self.templates.all(t, t.contains('{text}'))",
            message="each of data.augmentation's templates must contain {text}, where the text is inserted",
            holds=lambda new, _: all("{text}" in template for template in new.get("templates", ())),
        ),
        Rule(
            cel="!has(self.rate) || self.type in ['characterNoise', 'backoff']",
            message="data.augmentation's rate is only for characterNoise and backoff: remove it",
            holds=lambda new, _: "rate" not in new or new["type"] in ("characterNoise", "backoff"),
        ),
    )


MOST_SLICES = 32


def _names(new: dict[str, Any]) -> list[str]:
    """Of the sources that have one."""
    return [source["name"] for source in new.get("train", ()) if "name" in source]


def _reported(new: dict[str, Any]) -> list[str]:
    """Names of everything that is reported as a slice; a slice without one is refused for that."""
    return [*_names(new), *(part["name"] for part in new.get("slices") or () if "name" in part)]


_LEARNED_FROM = (
    "messages", "conversations", "role", "content", "from", "value", "prompt", "completion", "instruction", "output",
    "text", "label",
)  # fmt: skip


class Data(ApiModel):
    train: Annotated[tuple[TrainSource, ...], Field(min_length=1, max_length=64)] = Field(
        description="Training rows.", json_schema_extra={LIST_MAP: "atomic"}
    )
    validation: Validation | None = Field(
        None,
        description="Data for early stopping and for choosing the best checkpoint. Default: 5 % of the training rows, "
        "at most 500.",
    )
    test: DataSource | None = Field(
        None, description="Test data, evaluated once before training (base model) and once after it (tuned model)."
    )
    slices: Annotated[tuple[Slice, ...], Field(max_length=MOST_SLICES)] = Field(
        (),
        description="Held-out domains, on which base and tuned model are compared.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]},
    )
    general: DataSource | None = Field(
        None, description="General text that measures forgetting, in bits per byte before and after training."
    )
    format: Literal["auto", "chat", "completion", "text", "classification"] = Field(
        "auto",
        description="Row format. chat: {messages}, or the keys of ShareGPT or Alpaca. completion: {prompt, "
        "completion}. text: {text}. classification: {text, label}. auto: detected from the rows.",
    )
    classification: Classification | None = Field(None, description="Settings for format classification.")
    sequence_length: int = Field(
        DEFAULT_SEQUENCE_LENGTH,
        ge=8,
        le=1048576,
        description="Maximum sequence length in tokens, limited by the number of positions that the model supports.",
    )
    overlong: Literal["fail", "drop", "truncate"] = Field(
        "fail",
        description="What to do with rows longer than sequenceLength. Affected rows are always reported. Rows of "
        "format text are split into windows instead.",
    )
    ignore_keys: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=128)], ...], Field(max_length=32)] = (
        Field(
            (),
            description="Keys of rows or turns to ignore. Keys with a meaning in conversations (system, tools, "
            "tool_calls, reasoning_content …) cause an error if the model's chat template does not render them, unless "
            "they are listed here. Affected rows are counted.",
            json_schema_extra={LIST_MAP: "set"},
        )
    )
    append_eos: bool = Field(
        True,
        description="For format text: append the end-of-sequence token to each text, so that the model learns to stop. "
        "It is never duplicated, and never inserted inside a long text. Set it to false for fragments of longer texts.",
    )
    augmentation: Annotated[tuple[Augmentation, ...], Field(max_length=16)] = Field(
        (),
        description="Augmentations of training rows, applied in this order. Evaluation rows are never augmented.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    allow_duplicates: bool = Field(
        False, description="Allow validation or test rows that also occur in the training data."
    )
    mixing: Mixing | None = Field(
        None, description="Temperature sampling of the sources of data.train. Default: each row weight times per epoch."
    )
    packing: bool = Field(
        True, description="Pack several documents into one sequence; attention does not cross documents."
    )
    credentials: Credentials | None = Field(None, description="Credentials for private buckets.")

    RULES: ClassVar[tuple[Rule, ...]] = (
        sizes.AUGMENTATION,
        Rule(
            cel="!has(self.classification) || !has(self.format) || self.format in ['auto', 'classification']",
            message="data.classification is only for format classification (or auto): remove it or change data.format",
            holds=lambda new, _: "classification" not in new or new.get("format", "auto") in ("auto", "classification"),
        ),
        Rule(
            cel="!has(self.ignoreKeys) || self.ignoreKeys.all(k, !(k in ["
            + ", ".join(f"'{key}'" for key in _LEARNED_FROM)
            + "]))",
            message=f"data.ignoreKeys must not contain keys that hold training text ({', '.join(_LEARNED_FROM)})",
            holds=lambda new, _: not set(new.get("ignoreKeys", ())) & set(_LEARNED_FROM),
        ),
        Rule(
            cel="!has(self.mixing) || self.train.size() > 1",
            message="data.mixing needs several sources in data.train: add sources, or remove it",
            holds=lambda new, _: "mixing" not in new or len(new.get("train", ())) > 1,
        ),
        Rule(
            cel="!has(self.validation) || !has(self.validation.uri) || self.train.all(source, !has(source.name))",
            message="data.train[].name reports the held-out rows of a source apart, and data.validation.uri holds out "
            "none: remove the names and use data.slices, or set data.validation.fraction",
            holds=lambda new, _: not (new.get("validation") or {}).get("uri") or not _names(new),
        ),
        Rule(
            cel="self.train.all(source, !has(source.name) || (self.train.exists_one(other, has(other.name) && "
            "other.name == source.name) && (!has(self.slices) || self.slices.all(slice, slice.name != source.name))))",
            message="data.train[].name must be unique among the sources and data.slices",
            holds=lambda new, _: len(set(_reported(new))) == len(_reported(new)),
        ),
        Rule(
            cel="self.train.filter(source, has(source.name)).size() + (has(self.slices) ? self.slices.size() : 0) "
            f"<= {MOST_SLICES}",
            message=f"data.train[].name and data.slices are reported as at most {MOST_SLICES} slices in total",
            holds=lambda new, _: len(_reported(new)) <= MOST_SLICES,
        ),
        Rule(
            cel="!has(self.augmentation) || self.augmentation.size() == 0 || !has(self.format) || "
            "self.format != 'text'",
            message="data.augmentation changes inputs, and rows of format text have none: remove it",
            holds=lambda new, _: not new.get("augmentation") or new.get("format") != "text",
        ),
    )
