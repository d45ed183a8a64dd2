"""FineTuneJob.spec.diagnostics: what is measured inside the model, layer by layer, before and after training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import ApiModel, Rule
from .fields import LIST_MAP, MAP_KEYS, DataUri, Name, OutputUri
from .methods import AUTO, TRAITS, type_of


class ConceptProbe(ApiModel):
    """A question to each layer: does the label of a token follow from its state?"""

    name: Name = Field(description="Name of the probe in reports.")
    uri: DataUri = Field(description="Texts with labels for single tokens; see labels. Training rows are not needed.")
    labels: Literal["file", "pythonTokens", "pythonNames", "wordnet"] = Field(
        "file",
        description="file: rows are {text, spans: [{start, end, label}]} with offsets in characters. pythonTokens, "
        "pythonNames: rows are {text} with Python source, and the labels are made from it: the kind of each token, or "
        "what each name is there (defined, parameter, keyword, called, attribute, assigned, read). wordnet: rows are "
        "{text} in English, and each word of one part of speech has the lexicographer file of its first sense in "
        "WordNet, such as noun.food or verb.motion.",
    )
    dictionary: OutputUri | None = Field(
        None,
        description="For labels: wordnet, the folder with WordNet's files (index.noun, data.noun, noun.exc and those "
        "of verb, adj and adv): s3://, gs://, az://, pvc:// or file:///. Without it $WNSEARCHDIR, or "
        "/usr/share/wordnet.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.dictionary) || has(self.labels) && self.labels == 'wordnet'",
            message="diagnostics.probes[].dictionary is only for labels: wordnet",
            holds=lambda new, _: "dictionary" not in new or new.get("labels") == "wordnet",
        ),
    )


class Diagnostics(ApiModel):
    similarity: Literal["cka"] | None = Field(
        None,
        description="cka: compare the states of each layer in base and tuned model on the test rows (without "
        "data.test, the validation rows) and on data.general, by unbiased CKA. Costs a pass over at most 4,096 tokens "
        "of each at the start of every attempt, and one at the end.",
    )
    probes: Annotated[tuple[ConceptProbe, ...], Field(max_length=8)] = Field(
        (),
        description="Concept probes: a linear probe of each layer for labels of single tokens, with a control task, of "
        "base and tuned model. Each costs a pass over at most 2,000 labelled tokens at the start of every attempt, and "
        "one at the end.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]},
    )

    @property
    def asked(self) -> bool:
        return self.similarity is not None or bool(self.probes)


_COMPARED = tuple(method.name for method in TRAITS.values() if method.steps and method.virtual is None)
"""Methods that change what the model makes of its own tokens."""

DIAGNOSTICS_RULES = (
    Rule(
        cel="!has(self.diagnostics) || !has(self.method) || !has(self.method.type) || self.method.type in "
        f"{[*_COMPARED, AUTO]}",
        message="diagnostics compare the layers of base and tuned model, and only method.type "
        f"{', '.join(_COMPARED)} change them: use one of these, or remove diagnostics",
        holds=lambda new, _: "diagnostics" not in new or type_of(new) in (*_COMPARED, AUTO),
    ),
    Rule(
        cel="!has(self.diagnostics) || !has(self.strategy) || !has(self.strategy.type) || "
        "self.strategy.type != 'deepspeed'",
        message="diagnostics are not supported by strategy.type deepspeed: set strategy.type: ddp or fsdp",
        holds=lambda new, _: "diagnostics" not in new or (new.get("strategy") or {}).get("type") != "deepspeed",
    ),
)


def without_diagnostics(spec: dict[str, Any], method: str, *, published: bool) -> dict[str, Any]:
    """Of a ladder: rungs measure nothing inside the model, and the run that publishes one does if its method can."""
    if published and method in _COMPARED:
        return spec
    return {name: value for name, value in spec.items() if name != "diagnostics"}
