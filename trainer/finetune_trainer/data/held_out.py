"""The test data of earlier tasks, read as the jobs of these tasks read them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import tokenizers

from finetune_api.data import Classification, Data, TrainSource
from finetune_api.names import PREFIX_DATA
from finetune_trainer.statistics import Statistics
from finetune_trainer.store.sequence import HeldOut
from finetune_trainer.store.sources import find_files

from .build import Build, sha256
from .cache import kept
from .corpus import Corpus
from .load import RECIPE
from .read import ENDINGS
from .sample import drawn_part
from .tokenizer import Tokenizer, tokenizer_files


class Read(NamedTuple):
    corpus: Corpus
    """The rows that are measured: with HeldOut.max_rows the sample that the task's own job took."""
    digests: dict[str, str]
    """Of what was read of each file, as `Datasets.digests`."""


def load_held_out(given: HeldOut, *, tokenizer_path: Path, cache: Path) -> Read:
    """FinetuneError for everything that is wrong with the files, with file and line."""
    spec = _as_data(given)
    found = find_files(given.uri, prefix=PREFIX_DATA, endings=ENDINGS)
    local = {file.uri: sha256(file.where, file.uri) for file in found if isinstance(file.where, Path)}
    tokenizer_digest = hashlib.sha256("".join(sha256(path) for path in tokenizer_files(tokenizer_path)).encode())
    facts = [spec.model_dump_json(), tokenizer_digest.hexdigest(), tokenizers.__version__, str(RECIPE)]
    facts += [f"{file.uri} {local.get(file.uri) or file.version}" for file in found] + [str(given.group_by)]
    key = hashlib.sha256("\0".join(["held out", *facts]).encode()).hexdigest()

    def fill(folder: Path) -> None:
        build = Build(
            spec,
            given.seed,
            Tokenizer.load(tokenizer_path),
            {given.uri: found},
            tokenizer_digest.hexdigest(),
            dict(local),
            group_by=given.group_by,
        )
        build.write_one(folder, "test", given.uri)

    with kept(cache / "tokenized" / key[:32], fill) as folder:
        statistics = Statistics.model_validate_json((folder / "statistics.json").read_bytes())
        corpus = Corpus.load(folder / "test")
    if given.max_rows is not None and len(corpus) > given.max_rows:
        corpus = drawn_part(corpus, given.max_rows, given.seed)
    return Read(corpus, statistics.digests)


def _as_data(given: HeldOut) -> Data:
    labelled = given.format == "classification"
    return Data(
        train=(TrainSource(uri=given.uri),),
        format=given.format,
        classification=Classification(labels=given.labels, instruction=given.instruction) if labelled else None,
        sequence_length=given.sequence_length,
        overlong=given.overlong,
        ignore_keys=given.ignore_keys,
        append_eos=given.append_eos,
    )
