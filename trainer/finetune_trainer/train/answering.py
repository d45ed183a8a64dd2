"""Lets base and tuned model answer held-out prompts, where evaluation.generate or a guard asks for it.

The base model answers before step 1, when it is what it is in this run, and its answers are stored with the
checkpoints; the tuned model answers once its scale is chosen. Batches are cut before they are shared out over the
ranks, and each has random numbers of its own: so no number of ranks changes an answer. Where weights are sharded every
rank does as many passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from finetune_api.generated_text import Mode
from finetune_api.generation import Generate
from finetune_trainer.data.corpus import Corpus, Tokens
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.planning.positions import most_positions
from finetune_trainer.transfer.generated.answers import Answered, Answers, of_json, to_json
from finetune_trainer.transfer.generated.evidence import MODES, Generated, Written, generated
from finetune_trainer.transfer.generated.prompts import Prompts, prompts_of
from finetune_trainer.transfer.generated.scores import Asked

from .generation_config import stop_tokens
from .model import LanguageModel
from .setup import Setup
from .written import answers, sharded

_NOTE = "base-answers"


@dataclass
class Answering:
    """The answers of one run. Every method is collective, and does nothing where nothing is asked for."""

    setup: Setup
    settings: Generate | None
    prompts: Prompts | None
    stops: frozenset[int] = frozenset()
    base: Answered | None = field(default=None, init=False)

    @classmethod
    def of(cls, setup: Setup, corpora: Mapping[str, Corpus]) -> Answering:
        """InvalidSpec for a schema or a pattern that is not one. Rungs of a ladder do not answer: the run that
        publishes the best one does."""
        settings = setup.spec.generates if setup.plan.rung is None else None
        if settings is None:
            return cls(setup, None, None)
        Asked(settings).check()
        stops = stop_tokens(setup.data.train, setup.local.path)
        known = most_positions(setup.local.path)
        prompts = prompts_of(
            corpora,
            most=settings.max_rows,
            seed=setup.spec.training.seed,
            stops=stops,
            context=None if known is None else known - setup.spec.method.virtual_tokens,
            new=settings.max_new_tokens,
            spelled=setup.origin.pieces.spelled if setup.origin else None,
        )
        count = 0 if prompts is None else len(prompts)
        gathering = ", for each token of which all weights are gathered" if sharded(setup.trainer.strategy) else ""
        left_out = f"; {prompts.left_out} rows have no space for an answer" if prompts and prompts.left_out else ""
        every, most = 2 * len(MODES) * count, settings.max_new_tokens
        setup.trainer.reporter.say(
            f"evaluation.generate: {count} prompts, {every} answers of at most {most} tokens{gathering}{left_out}"
        )
        return cls(setup, settings, prompts if count else None, stops)

    def measure_base(self) -> None:
        """With the untouched model."""
        prompt = self.setup.trainer.prompt
        with prompt.off() if prompt else nullcontext():
            self.base = self._answered("base model", self.setup.of_base.trainer.model)

    def keep_base(self) -> None:
        """With the checkpoints: a run that resumes cannot ask the base model again."""
        notes = self.setup.trainer.checkpointer.notes
        if self.base is not None and self.prompts is not None and notes is not None:
            notes.note(_NOTE, to_json(self.base, self.prompts))

    def recall_base(self) -> None:
        """What `keep_base` kept; on rank 0 alone."""
        notes = self.setup.trainer.checkpointer.notes
        if self.prompts is not None and notes is not None:
            self.base = of_json(notes.noted(_NOTE), self.prompts)

    def judged(self) -> Generated | None:
        """With the model as it is published; None on ranks other than 0."""
        ids = self.setup.trainer.prompt.ids if self.setup.trainer.prompt else np.zeros(0, np.int32)
        tuned = self._answered("tuned model", self.setup.trainer.model, before=ids)
        if tuned is None or self.settings is None or self.prompts is None:
            return None
        if not self.setup.trainer.strategy.place.first:
            return None
        backend = Tokenizer.load(self.setup.local.path).backend
        written = Written(
            prompts=self.prompts,
            settings=self.settings,
            base=self.base or {},
            tuned=tuned,
            decode=lambda tokens: str(backend.decode(list(tokens), skip_special_tokens=True)),
        )
        collapse = self.setup.spec.guards.collapse
        return generated(written, bound=collapse.max_drop if collapse else None)

    def _answered(self, who: str, model: LanguageModel, before: Tokens | None = None) -> Answered | None:
        """before: in front of each prompt, of the tuned model; None: the base model, whose tokens may be others."""
        if self.settings is None or self.prompts is None:
            return None
        trainer, reporter = self.setup.trainer, self.setup.trainer.reporter
        most, count = self.settings.max_new_tokens, len(self.prompts)
        prompts = self.prompts.of_base if before is None else [np.concatenate([before, p]) for p in self.prompts.tokens]
        found: dict[Mode, Answers] = {}
        for mode in MODES:

            def progress(done: int, mode: Mode = mode) -> None:
                told = f"{who}: {done} of {count} prompts answered, {mode}, at most {most} tokens each"
                reporter.phase("evaluating", told)

            found[mode] = answers(
                model,
                list(prompts),
                mode=mode,
                new=most,
                stops=self.stops,
                pad=trainer.layout.pad_id,
                seed=self.setup.spec.training.seed,
                most_tokens=trainer.layout.max_tokens,
                alive=reporter.alive,
                stop_requested=trainer.stop_requested,
                compiled=self.setup.spec.training.compile,
                progress=progress,
            )
        return found
