"""What a run is made from stays what it was: on every node, and in every attempt.

A branch of a hub moves, and a file in a bucket can be written again. The first attempt's first rank decides which
commit of the model, or which content of its files, and which content of the data a run means, and stores it next to the
checkpoints. Another commit than that is not taken; other content of a file ends the run, for its steps and scores would
be of two models or data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api import names
from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import Fold, RunPlan
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_trainer.data.earlier_rows import EarlierRows
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.methods.earlier import Earlier, earlier_of
from finetune_trainer.parallel.base import Gang
from finetune_trainer.random_streams import NEWEST
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.models import LocalModel, resolve_model
from finetune_trainer.transfer.tasks import EarlierTest, check_rows, tests_of

_REVISION, _MODEL, _DATA, _STREAMS = "model-revision", "model-digests", "data-digests", "streams"
_EARLIER, _TESTS = "earlier-digest", "earlier-tests"


@dataclass(frozen=True)
class Inputs:
    """Every call is collective."""

    gang: Gang
    store: CheckpointStore | None
    """Set on rank 0; None elsewhere."""
    allowed: tuple[str, ...] | None = None
    """What the admin lets the URIs of earlier tasks begin with; None: anything."""

    @classmethod
    def of(cls, plan: RunPlan, gang: Gang, output: Folder) -> Inputs:
        return cls(gang, CheckpointStore(output, plan.job) if gang.place.first else None, plan.uri_prefixes)

    def earlier(self, spec: FineTuneJobSpec, *, cache: Path) -> Earlier | None:
        """Errors of earlier_of, and DataChanged."""
        found = earlier_of(spec, cache=cache, allowed=self.allowed)
        if found is not None:
            check_digests({found.uri: found.digest}, self._first(_EARLIER, {found.uri: found.digest}))
        return found

    def tests(self, earlier: Earlier | None, *, tokenizer_path: Path, cache: Path) -> tuple[EarlierTest, ...]:
        """Errors of tests_of and of check_rows, and DataChanged."""
        if earlier is None:
            return ()
        found = tests_of(earlier.sequence, tokenizer_path=tokenizer_path, cache=cache)
        mine = {uri: digest for test in found for uri, digest in test.digests.items()}
        check_digests(mine, self._first(_TESTS, mine))
        if self.gang.place.first:
            check_rows(found, earlier.manifest, earlier.uri)
        return found

    def model(self, source: ModelSource, *, cache: Path, prefix: str = names.PREFIX_MODEL) -> LocalModel:
        """Errors of resolve_model, and DataChanged."""
        local = resolve_model(source, cache=cache, prefix=prefix)
        if local.revision is None:
            mine = {f"{source.uri.rstrip('/')}/{name}": told for name, told in local.digests().items()}
            check_digests(mine, self._first(_MODEL, mine))
            return local
        commit = self._first(_REVISION, local.revision)
        return local if commit == local.revision else resolve_model(_at(source, commit), cache=cache)

    def streams(self) -> int:
        """The generation of random streams that the run began with: the first one for checkpoints without a note of
        it. InvalidSpec for one that a newer release began."""
        began = NEWEST if self.store is None or not self.store.steps() else 1
        streams: int = self._first(_STREAMS, began)
        if streams > NEWEST:
            raise FinetuneError(
                Reason.InvalidSpec,
                f"a newer release began this run: its random streams are of generation {streams}, "
                f"and this one knows {NEWEST}",
                "Resume it with the image that began it, or with a newer one.",
            )
        return streams

    def data(
        self,
        spec: Data,
        *,
        tokenizer_path: Path,
        cache: Path,
        seed: int,
        group_by: str | None = None,
        replay: str | None = None,
        earlier: EarlierRows | None = None,
        fold: Fold | None = None,
    ) -> Datasets:
        """Errors of load_datasets, and DataChanged."""
        data = load_datasets(
            spec,
            tokenizer_path=tokenizer_path,
            cache=cache,
            seed=seed,
            streams=self.streams(),
            group_by=group_by,
            replay=replay,
            earlier=earlier,
            fold=(fold.index, fold.of) if fold else None,
        )
        check_digests(data.digests, self._first(_DATA, dict(data.digests)))
        return data

    def _first(self, name: str, mine: Any) -> Any:
        """What the first attempt's first rank had in the place of `mine`."""
        told = None
        if self.store is not None:
            told = self.store.noted(name)
            if told is None:
                told = mine
                self.store.note(name, mine)
        return self.gang.broadcast_json(told)


def check_digests(now: Mapping[str, str], first: Mapping[str, str]) -> None:
    """DataChanged names a file, by its URI, whose digest is another one, or that only one side has."""
    other = sorted({uri for uri, _ in now.items() ^ first.items()})
    if other:
        more = f", and so are {len(other) - 1} more" if len(other) > 1 else ""
        raise FinetuneError(Reason.DataChanged, f"{other[0]} is not what this run began with{more}")


def _at(source: ModelSource, commit: str) -> ModelSource:
    return source.model_copy(update={"revision": commit})
