"""`finetune analyze FILE`: how far the training rows are from general text, and what follows for the manifest.

It reads a sample of the rows, measures the untouched model on it, and trains nothing: minutes on a CPU, before a GPU is
held. The thresholds are those of `statistics.shift`; each recommendation says by which number.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.manifest import ManifestError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.text import problems_text, table
from finetune_trainer.cli.validate import read_manifest

if TYPE_CHECKING:
    from finetune_trainer.data.corpus import Corpus
    from finetune_trainer.statistics.shift import Band, Ratio

DOCUMENTS = 64
"""Of each text, that the model reads."""
COUNTED = 4096
"""Of each text, whose tokens are counted."""
TOKENS = 256
"""Longest window, in tokens: shift needs many documents and no long ones."""


@dataclass(frozen=True, kw_only=True)
class Text:
    name: str
    documents: int
    tokens_per_byte: float
    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Analysis:
    task: Text
    general: Text
    ratio: Ratio
    excess: float
    longer: float
    """Tokens per byte of the task, relative to general text."""
    shift: Band
    rows: int


def show_analysis(file: str, *, cache: Path, documents: int, as_json: bool) -> int:
    try:
        job = read_manifest(file)
    except ManifestError as error:
        print(problems_text(file, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    found = analyze(job.spec, cache=cache, documents=documents)
    advice = recommended(found, job.spec)
    print(json.dumps(_as_json(found, advice), indent=2) if as_json else _text(found, advice))
    return ExitCode.OK


def analyze(spec: FineTuneJobSpec, *, cache: Path, documents: int = DOCUMENTS) -> Analysis:
    """FinetuneError for what is wrong with model or data; InvalidSpec without general text."""
    import numpy as np

    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.data.sample import drawn_part
    from finetune_trainer.statistics import shift
    from finetune_trainer.store.models import resolve_model

    if spec.data.general is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "there is no general text to compare the training rows with",
            "Set data.general to text that the model is good at.",
        )
    model = resolve_model(spec.model, cache=cache)
    data = spec.data.model_copy(
        update={"sequence_length": min(TOKENS, spec.data.sequence_length), "overlong": "truncate"}
    )
    sets = load_datasets(data, tokenizer_path=model.path, cache=cache, seed=spec.training.seed)
    assert sets.general is not None
    task, general = (drawn_part(corpus, documents, spec.training.seed) for corpus in (sets.train, sets.general))
    if min(len(task), len(general)) < 4:
        raise FinetuneError(
            Reason.InvalidSpec, "an analysis needs at least 4 documents of each text", "Add rows to data.general."
        )
    measured = _nats(model.path, (task, general), pad_id=sets.pad_id)
    pairs = [(nats, corpus.bytes.astype(np.float64)) for nats, corpus in zip(measured, (task, general), strict=True)]
    ratio = shift.ratio_of_bits(*pairs)
    counted = (drawn_part(corpus, COUNTED, spec.training.seed) for corpus in (sets.train, sets.general))
    divergence = shift.excess(*map(_trained, counted))
    texts = [
        Text(
            name=name,
            documents=len(corpus),
            tokens_per_byte=corpus.trained_tokens / int(corpus.bytes.sum()),
            bits_per_byte=shift.bits_per_byte(*pair),
        )
        for name, corpus, pair in zip(("training rows", "general text"), (task, general), pairs, strict=True)
    ]
    longer = texts[0].tokens_per_byte / texts[1].tokens_per_byte
    return Analysis(
        task=texts[0],
        general=texts[1],
        ratio=ratio,
        excess=divergence,
        longer=longer,
        shift=shift.band(ratio, divergence, longer),
        rows=sets.statistics.splits["train"].rows,
    )


def _trained(corpus: Corpus) -> list[Any]:
    """Trained tokens of each document."""
    rows = [corpus.row(index) for index in range(len(corpus))]
    return [row.tokens[row.trained] for row in rows]


def _nats(path: Path, corpora: tuple[Corpus, ...], *, pad_id: int) -> list[Any]:
    """(documents,) of each corpus, by the untouched model."""
    import torch

    from finetune_trainer.parallel.single import Single
    from finetune_trainer.train.capabilities import probe
    from finetune_trainer.train.model import LanguageModel, load_network
    from finetune_trainer.transfer.evaluate import Layout, evaluate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, _ = load_network(path, dtype=torch.float32, strategy=Single(), device=device, frozen=True)
    network.eval()
    model = LanguageModel(network, device, None, probe(network, device), Single())
    layout = Layout(max_tokens=1024, sequence_length=TOKENS, packing=model.capabilities.isolates, pad_id=pad_id)
    return [evaluate(model, corpus, layout=layout, strategy=Single(), going_on=lambda: True).nats for corpus in corpora]


def recommended(found: Analysis, spec: FineTuneJobSpec) -> tuple[tuple[str, str], ...]:
    """(what to write, why)"""
    from finetune_trainer.statistics.shift import LONGER

    shift = (
        f"the shift is {found.shift}: {found.ratio.value:.2f} times the bits per byte of general text, "
        f"Jensen-Shannon excess {found.excess:.2f} bits"
    )
    fraction = 0.25 if found.shift == "large" else 0.05
    advice = [(f"regularization.replay: {{fraction: {fraction}, uri: …}}", shift)]
    if spec.guards.forgetting is None:
        advice.append(("guards.forgetting: {maxBitsPerByteIncrease: 0.05}", "general text is there to measure it"))
    if found.longer > LONGER:
        advice.append((
            "a model whose tokenizer suits the text, if there is one",
            f"a byte takes {found.longer:.2f} times the tokens of general text, so rows cost that much more",
        ))  # fmt: skip
    if found.rows < 10_000 and spec.method.trains_the_model:
        advice.append(("method: {type: lora}", f"{found.rows:,} rows are few for training the model's own weights"))
    return tuple(advice)


def _as_json(found: Analysis, advice: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return {
        "texts": [
            {
                "name": text.name,
                "documents": text.documents,
                "bitsPerByte": text.bits_per_byte,
                "tokensPerByte": text.tokens_per_byte,
            }
            for text in (found.task, found.general)
        ],
        "bitsPerByteRatio": {"value": found.ratio.value, "low": found.ratio.low, "high": found.ratio.high},
        "jensenShannonExcess": found.excess,
        "tokensPerByteRatio": found.longer,
        "shift": found.shift,
        "rows": found.rows,
        "recommendations": [{"set": what, "because": why} for what, why in advice],
    }


def _text(found: Analysis, advice: tuple[tuple[str, str], ...]) -> str:
    lines = [
        (text.name, f"{text.documents}", f"{text.bits_per_byte:.3f}", f"{text.tokens_per_byte:.3f}")
        for text in (found.task, found.general)
    ]
    ratio = found.ratio
    return "\n\n".join((
        table(("text", "documents", "bits per byte", "tokens per byte"), lines, indent=""),
        f"bits per byte, training rows / general text: {ratio.value:.2f} (95 % interval {ratio.low:.2f} to "
        f"{ratio.high:.2f})\nJensen-Shannon excess of their tokens: {found.excess:.2f} bits\n"
        f"tokens per byte, training rows / general text: {found.longer:.2f}",
        f"The shift is {found.shift}. Recommended:\n" + "\n".join(f"  {what}\n    {why}" for what, why in advice),
    ))  # fmt: skip
