"""Method probe: what takes the place of the loop. Features are computed once, each row by one rank, and rank 0 fits.

    measure the base model by its labels' likelihoods · choose the layer on a sample · fit on all rows · measure again

The layer is the one whose ridge is right most often on rows that it has not seen. Losses, before and after, are nats
for each row: of the right label among all labels, so that a language model and a classifier can be compared.
A run takes seconds to minutes and keeps no checkpoint: one that is stopped starts again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.corpus import Choices, Corpus, Numbers, corpus_of
from finetune_trainer.data.order import share
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.methods.base import FitsWithoutSteps
from finetune_trainer.methods.needs import check_probed
from finetune_trainer.transfer.evaluate import Measured, choice_nats, gathered
from finetune_trainer.transfer.features import default_layers, features
from finetune_trainer.transfer.probe import Probe, Spectrum, fit, judge_ridge, log_softmax

from .loop import Trainer

SAMPLE = 2000
"""Rows that the layer is chosen on, spread over the training rows."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ProbeRun:
    trainer: Trainer
    attached: FitsWithoutSteps
    labels: tuple[str, ...]

    def fit(self) -> Probe:
        """Collective. InvalidSpec where the rows are not a classification or a layer is missing; else Interrupted."""
        train = self.trainer.train
        gold = _choices(train).gold.astype(np.int64)
        layers = self._layers()
        sample = np.unique(np.linspace(0, len(train) - 1, min(SAMPLE, len(train))).astype(np.int64))
        found = self._features(train.take(sample), layers)
        layer = self._agreed_layer(layers, found, gold[sample])
        whole = len(sample) == len(train)
        chosen = found[:, layers.index(layer)] if whole else self._features(train, (layer,))[:, 0]
        probe = self._fitted(chosen, gold, layer)
        self.attached.classifier = probe
        self.trainer.reporter.say(
            f"probe: {probe.kind} on layer {layer} of {', '.join(map(str, layers))}, {len(train)} rows of "
            f"{chosen.shape[1]} features, penalty {probe.penalty:g}, cross-validated accuracy {probe.accuracy:.3f}"
        )
        return probe

    def measure_base(self, corpus: Corpus) -> Measured:
        """Collective: the model's own answers, each label by its likelihood after the prompt."""
        mine = self._mine(corpus)
        part = corpus.take(mine)
        nats = np.zeros((len(part), len(self.labels)))
        stopped = False
        for rows, found in choice_nats(self.trainer.model, part, self.trainer.layout):
            nats[rows] = found
            self.trainer.reporter.alive()
            if stopped := self.trainer.stop_requested():
                break
        self._go_on(stopped)
        return self._measured(corpus, mine, log_softmax(-nats))

    def measure(self, corpus: Corpus) -> Measured:
        """Collective: the probe's answers."""
        assert self.attached.classifier is not None
        probe, mine = self.attached.classifier, self._mine(corpus)
        found = self._features_here(corpus.take(mine), (probe.layer,))
        return self._measured(corpus, mine, probe.log_probabilities(found[:, 0]))

    def _layers(self) -> tuple[int, ...]:
        there = decoder_layers(self.trainer.model.network).count
        wanted = self.attached.settings.layers or default_layers(there)
        check_probed(wanted, there)
        return tuple(sorted(set(wanted)))

    def _agreed_layer(self, layers: tuple[int, ...], found: Floats, gold: Numbers) -> int:
        best: int | None = None
        if self.trainer.strategy.place.first:
            judged = {
                layer: judge_ridge(Spectrum.of(found[:, index]), gold, len(self.labels))
                for index, layer in enumerate(layers)
            }
            best = max(layers, key=lambda layer: (judged[layer].accuracy, -judged[layer].nats))
        return int(self.trainer.strategy.broadcast_json(best))

    def _fitted(self, found: Floats, gold: Numbers, layer: int) -> Probe:
        """Rank 0's, for all ranks."""
        strategy, kind = self.trainer.strategy, self.attached.settings.kind
        weight = torch.zeros(len(self.labels), found.shape[1])
        bias = torch.zeros(len(self.labels))
        told: tuple[float, float] | None = None
        if strategy.place.first:
            probe = fit(found, gold, self.labels, layer=layer, kind=kind)
            weight, bias = torch.from_numpy(probe.weight).clone(), torch.from_numpy(probe.bias).clone()
            told = probe.penalty, probe.accuracy
        penalty, accuracy = strategy.broadcast_json(told)
        strategy.broadcast([weight, bias])
        return Probe(weight.numpy(), bias.numpy(), self.labels, layer, kind, penalty, accuracy)

    def _features(self, corpus: Corpus, layers: tuple[int, ...]) -> Floats:
        """Collective: (rows, layers, 2 · dim) on every rank, each row computed by one of them."""
        mine = self._mine(corpus)
        here = self._features_here(corpus.take(mine), layers)
        whole = torch.zeros(len(corpus), *here.shape[1:])
        whole[torch.from_numpy(mine)] = torch.from_numpy(here)
        self.trainer.strategy.sum_gradients([whole.view(-1)])  # the others' rows are zeros, so a sum is a gathering
        return whole.numpy()

    def _features_here(self, corpus: Corpus, layers: tuple[int, ...]) -> Floats:
        """Collective in that all stop if one is asked to."""
        model, stopped = self.trainer.model, False
        out = np.zeros((len(corpus), len(layers), 2 * model.hidden_size), np.float32)
        model.network.eval()
        for batch in self.trainer.layout.batches(prompts(corpus), np.arange(len(corpus))):
            out[batch.documents] = features(model.network, batch, layers)
            self.trainer.reporter.alive()
            if stopped := self.trainer.stop_requested():
                break
        self._go_on(stopped)
        return out

    def _mine(self, corpus: Corpus) -> Numbers:
        place = self.trainer.strategy.place
        return share(np.arange(len(corpus)), corpus.lengths, rank=place.rank, world_size=place.world_size)

    def _go_on(self, stopped: bool) -> None:
        if self.trainer.strategy.sum_counters([float(stopped)])[0]:
            raise FinetuneError(
                Reason.Interrupted, "stopped on request before the probe was fitted; the next attempt starts again"
            )

    def _measured(self, corpus: Corpus, mine: Numbers, logs: NDArray[np.float64]) -> Measured:
        """Collective, of the log-probabilities (rows, labels) of this rank's rows. A loss is that of the right label
        among all of them, by row and not by token."""
        gold = _choices(corpus).gold
        labels = np.zeros((len(corpus), logs.shape[1]))
        labels[mine] = -logs
        found = gathered(corpus, np.zeros(len(corpus)), labels, stopped=False, strategy=self.trainer.strategy)
        assert found.labels is not None
        nats = found.labels[np.arange(len(gold)), gold]
        told = {"loss": float(nats.mean()), "bits_per_byte": None, "tokens": len(corpus)}
        return Measured(found.scores.model_copy(update=told), nats, np.ones(len(corpus), np.int64), found.labels)


def probed(
    probing: ProbeRun, held_out: Mapping[str, Corpus], measure_text: Callable[[Corpus], Measured]
) -> tuple[dict[str, Measured], dict[str, Measured], float]:
    """(the base model by data set, the probe, seconds of fitting). Collective."""
    reporter = probing.trainer.reporter
    _choices(probing.trainer.train)
    reporter.phase("evaluating", "measuring the base model")
    # The model itself stays as it is: what it makes of general text is measured once and holds for both.
    text = {name: measure_text(corpus) for name, corpus in held_out.items() if corpus.choices is None}
    rows = {name: corpus for name, corpus in held_out.items() if corpus.choices is not None}
    base = {name: probing.measure_base(corpus) for name, corpus in rows.items()}
    reporter.phase("training", "fitting the probe")
    started = time.monotonic()
    probing.fit()
    seconds = time.monotonic() - started
    reporter.phase("evaluating", "measuring the probe")
    return base | text, {name: probing.measure(corpus) for name, corpus in rows.items()} | text, seconds


def _choices(corpus: Corpus) -> Choices:
    if corpus.choices is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "method.type probe needs rows of format classification, and the training rows are of another",
            "Give rows of {text, label}, or choose another method.type.",
        )
    return corpus.choices


def prompts(corpus: Corpus) -> Corpus:
    """Each row up to its answer. InvalidSpec where the rows are not a classification."""
    starts = _choices(corpus).prompts
    tokens = [corpus.row(i).tokens[: starts[i]] for i in range(len(corpus))]
    return corpus_of(tokens, [np.zeros(len(row), np.bool_) for row in tokens], [0] * len(tokens))
