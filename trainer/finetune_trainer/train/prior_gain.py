"""What pretraining is worth on the task, for evaluation.priorGain: a linear classifier on the states of the model as it
is, against one on those of a copy of the same architecture with random weights.

Both are fitted to the same training rows, each on the layer that suits it, and judged on the same held-out rows. Where
random weights are no worse, what the model has learned before does not help here (negative transfer of pretraining).
It runs before the first step of an attempt, when the model is what it is; the same rows and seed give the same numbers.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import PriorGain
from finetune_api.methods.probe import Probe as ProbeSettings
from finetune_api.strategy import SHARDED
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.sample import drawn_part
from finetune_trainer.parallel.weight_names import class_of
from finetune_trainer.random_streams import UNTRAINED
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.transfer.evaluate import likeliest
from finetune_trainer.transfer.evidence import digests
from finetune_trainer.transfer.probe import Probe

from .linear_probe import SAMPLE, ProbeRun
from .setup import Setup

Hits = dict[str, list[float]]
"""By `pretrained` and `random`, in the order of the data set's rows: 1 where the classifier is right, else 0."""


@dataclass
class _Fit:
    """What ProbeRun fits."""

    settings: ProbeSettings = field(default_factory=ProbeSettings)
    classifier: Probe | None = None


@dataclass
class Prior:
    """Of one run. Every method is collective, and does nothing where nothing is asked for."""

    setup: Setup
    name: str = ""
    corpus: Corpus | None = None
    hits: Hits | None = None

    @classmethod
    def of(cls, setup: Setup, corpora: Mapping[str, Corpus]) -> Prior:
        """InvalidSpec where rows are not classifications, or the weights are in shards. Rungs of a ladder are not
        asked: the run that publishes the best one is."""
        if not setup.spec.evaluation.prior_gain or setup.plan.rung is not None:
            return cls(setup)
        strategy = setup.trainer.strategy
        if strategy.name in SHARDED and strategy.place.world_size > 1:
            raise FinetuneError(
                Reason.InvalidSpec,
                f"evaluation.priorGain needs a whole copy of the model on each process, and {strategy.name} shards it",
                "Remove evaluation.priorGain, or set strategy.type: ddp.",
            )
        name = next((name for name in ("test", "validation") if name in corpora and corpora[name].choices), None)
        if name is None or setup.trainer.train.choices is None:
            raise FinetuneError(
                Reason.InvalidSpec,
                "evaluation.priorGain needs classification rows for training and in data.test or data.validation",
                "Remove evaluation.priorGain, or give rows of {text, label}.",
            )
        return cls(setup, name, corpora[name])

    def measure(self) -> None:
        """With the untouched model. Interrupted when a rank was asked to stop."""
        if self.corpus is None:
            return
        trainer, model = self.setup.trainer, self.setup.trainer.model
        say = trainer.reporter.phase
        say("evaluating", "measuring what pretraining is worth: the model as it is")
        self.hits = {"pretrained": self._right(model.network)}
        say("evaluating", "measuring what pretraining is worth: a copy with random weights")
        self.hits["random"] = self._right(self._untrained())
        gc.collect()

    def judged(self) -> PriorGain | None:
        if self.hits is None or self.corpus is None:
            return None
        groups = digests(self.corpus)[1]
        found = difference(Paired.scores(base=self.hits["random"], tuned=self.hits["pretrained"], groups=groups))
        return PriorGain.model_validate(
            {
                "name": self.name,
                "random": found.base,
                "pretrained": found.tuned,
                **{name: getattr(found, name) for name in ("difference", "low", "high", "minimum_detectable")},
                "verdict": found.verdict.value,
                "rows": found.rows,
                "groups": found.groups,
            }
        )

    def _right(self, network: nn.Module) -> list[float]:
        trainer, labels = self.setup.trainer, self.setup.data.labels
        assert self.corpus is not None
        assert self.corpus.choices is not None
        part = drawn_part(trainer.train, SAMPLE, self.setup.spec.training.seed)
        own = replace(trainer, model=replace(trainer.model, network=network), train=part)
        probing = ProbeRun(own, cast(Any, _Fit()), labels)
        probing.fit()
        measured = probing.measure(self.corpus)
        assert measured.labels is not None
        right: np.ndarray[Any, Any] = likeliest(self.corpus, measured.labels) == self.corpus.choices.gold
        return [float(each) for each in right]

    def _untrained(self) -> nn.Module:
        """The same on all ranks."""
        from transformers import AutoConfig

        model = self.setup.trainer.model
        config = AutoConfig.from_pretrained(self.setup.local.path)
        attention = cast(Any, model.network).config._attn_implementation
        dtype = next(model.network.parameters()).dtype
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), model.device:
            torch.manual_seed(UNTRAINED.number(self.setup.spec.training.seed, 0) >> 1)
            built = cast(Any, class_of(config))._from_config(config, dtype=dtype, attn_implementation=attention)
        network = cast(nn.Module, built).requires_grad_(False).eval()
        cast(Any, network).config.use_cache = False
        return network
