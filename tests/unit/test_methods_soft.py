"""Learned inputs: equal to PEFT's on single documents, isolated where PEFT's are not, and gone when switched off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method, Prefix, Prompt, PTuning
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.soft import SoftAttached
from finetune_trainer.train.capabilities import hidden_states, probe
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.train.state import State
from tests.support.tiny_model import tiny_model
from tests.support.training import (
    BASE,
    CPU,
    LENGTHS,
    Knobs,
    disturb,
    documents,
    interrupted,
    largest_difference,
    make_run,
    network,
)

TOKENS = torch.arange(24).view(2, 12)
PROMPT = Method(type="prompt", prompt=Prompt(virtual_tokens=5))
PTUNING = Method(type="ptuning", ptuning=PTuning(virtual_tokens=5, hidden=16))
PREFIX = Method(type="prefix", prefix=Prefix(virtual_tokens=5))
METHODS = pytest.mark.parametrize("method", [PROMPT, PTUNING, PREFIX], ids=lambda m: m.type)
KINDS = ["Llama", "Qwen2", "GPTNeoX", "GPT2", "Gemma2", "Mistral"]


def _attach(net: nn.Module, method: Method, *, seed: int = 1) -> SoftAttached:
    attached = method_of(method).attach(net, seed=seed, base=BASE)
    assert isinstance(attached, SoftAttached)
    return attached


def _logits(net: nn.Module, attached: SoftAttached, tokens: torch.Tensor) -> torch.Tensor:
    """Of the real tokens, as training computes them."""
    virtual = torch.from_numpy(attached.ids.astype(np.int64)).expand(len(tokens), -1)
    return net(input_ids=torch.cat([virtual, tokens], 1), use_cache=False).logits[:, len(attached.ids) :]


@METHODS
@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_gives_the_logits_that_training_computed(tmp_path: Path, method: Method, kind: str) -> None:
    net = network(kind)
    attached = _attach(net, method)
    disturb(attached, by=0.3)
    attached.export(tmp_path)
    loaded = PeftModel.from_pretrained(network(kind), tmp_path).eval()
    theirs = loaded(input_ids=TOKENS).logits[:, len(attached.ids) :]
    torch.testing.assert_close(_logits(net, attached, TOKENS), theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(theirs, network(kind)(TOKENS).logits, atol=1e-2)


@METHODS
def test_the_export_is_pefts_and_loads_again(tmp_path: Path, method: Method) -> None:
    from safetensors.torch import load_file

    net = network()
    attached = _attach(net, method)
    disturb(attached, by=0.3)
    attached.export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(kept.pop("prompt_embeddings"), attached.encoder())
    assert not kept
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    names = {"prompt": "PROMPT_TUNING", "ptuning": "P_TUNING", "prefix": "PREFIX_TUNING"}
    assert (config["peft_type"], config["task_type"]) == (names[method.type], "CAUSAL_LM")
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("org/tiny", True)
    again = method_of(method).load(network(), tmp_path)
    ours = _logits(net, attached, TOKENS)
    torch.testing.assert_close(again(TOKENS).logits[:, len(attached.ids) :], ours, rtol=1e-4, atol=1e-5)


@METHODS
@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_base_model_to_the_bit(method: Method, kind: str) -> None:
    net = network(kind)
    before, weights = net(TOKENS).logits, {n: p.clone() for n, p in net.named_parameters()}
    attached = _attach(net, method)
    disturb(attached, by=0.3)
    adapted = _logits(net, attached, TOKENS)
    with attached.off():
        assert torch.equal(net(TOKENS).logits, before)
    assert torch.equal(_logits(net, attached, TOKENS), adapted)
    kept = {name.replace(".words.", "."): p for name, p in net.named_parameters()}
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())


@METHODS
@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX", "Qwen2"])
def test_documents_that_share_a_row_do_not_see_each_other(method: Method, kind: str) -> None:
    """Also where the model's own code, given a cache or inputs of its own, would let them."""
    net = network(kind)
    attached = _attach(net, method)
    disturb(attached, by=0.3)
    assert probe(net, CPU).isolates
    first, second = TOKENS[:1, :7], TOKENS[1:, :5]
    virtual = torch.from_numpy(attached.ids.astype(np.int64))[None]
    rows = [torch.cat([virtual, document], 1) for document in (first, second)]
    alone = [hidden_states(net, row, torch.arange(row.shape[1])[None]) for row in rows]
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    packed = hidden_states(net, torch.cat(rows, 1), positions)
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


def test_models_with_a_window_get_one_document_a_row_with_a_prefix() -> None:
    net = network("Mistral", sliding_window=64)
    _attach(net, PREFIX)
    assert not probe(net, CPU).isolates


def test_a_prefix_starts_as_tokens_that_were_read() -> None:
    """Its keys and values are those of the drawn tokens: the logits are the base model's after them."""
    net = network()
    drawn = torch.randint(97, (5,), generator=torch.Generator().manual_seed(1))
    read = net(torch.cat([drawn.expand(2, -1), TOKENS], 1)).logits[:, 5:]
    attached = _attach(net, PREFIX)
    torch.testing.assert_close(_logits(net, attached, TOKENS), read, rtol=1e-4, atol=1e-5)


def test_a_prompt_starts_as_tokens_of_the_vocabulary_or_of_a_text(tmp_path: Path) -> None:
    net = network()
    drawn = torch.randint(97, (5,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(_attach(net, PROMPT).encoder(), network().model.embed_tokens(drawn))
    base = replace(BASE, folder=tiny_model(tmp_path))
    for text, ids in (("ab", "ababa"), ("abcdefg", "abcde")):
        net = network(vocab_size=264)
        method = Method(type="prompt", prompt=Prompt(virtual_tokens=5, init_text=text))
        attached = method_of(method).attach(net, seed=1, base=base)
        table = network(vocab_size=264).model.embed_tokens
        letters = {c: i for i, c in enumerate(sorted(_alphabet()))}
        assert torch.equal(attached.trainable["prompt.weight"], table(torch.tensor([letters[c] for c in ids])))


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


@METHODS
def test_only_the_input_trains_and_a_seed_makes_it_again(method: Method) -> None:
    net = network()
    attached, twin = _attach(net, method), _attach(network(), method)
    trained = {id(p) for p in net.parameters() if p.requires_grad}
    assert trained == {id(p) for p in attached.trainable.values()}
    assert all(torch.equal(p, twin.trainable[name]) for name, p in attached.trainable.items())
    sizes = {"prompt": 5 * 32, "ptuning": 5 * 32 + 33 * 16 + 17 * 16 + 17 * 32, "prefix": 5 * 2 * 2 * 16}
    assert sum(p.numel() for p in attached.trainable.values()) == sizes[method.type]


def test_a_model_without_keys_and_values_is_refused() -> None:
    net = network()

    def broken(**_: object) -> None:
        raise TypeError("no cache")

    net.base_model.forward = broken
    with pytest.raises(FinetuneError) as error:
        _attach(net, PREFIX)
    assert error.value.reason is Reason.ModelUnsupported


def test_rows_after_a_prompt() -> None:
    """Longer by it, trained on the same tokens, and whole when a part of them is taken."""
    corpus = documents(LENGTHS)
    after = corpus.after(np.array([97, 98], np.int32))
    assert after.trained_tokens == corpus.trained_tokens
    assert (after.lengths == corpus.lengths + 2).all()
    assert after.row(3).tokens.tolist() == [97, 98, *corpus.row(3).tokens.tolist()]
    assert after.row(3).trained.tolist() == [False, False, *corpus.row(3).trained.tolist()]
    taken = after.take(np.array([4, 3]))
    assert taken.row(1).tokens.tolist() == after.row(3).tokens.tolist()
    assert taken.lengths.tolist() == [12 + 2, 30 + 2]


def _finished(folder: Path, knobs: Knobs) -> tuple[dict[str, torch.Tensor], State]:
    run = make_run(folder, knobs)
    state = run.finish()
    return run.tensors(), state


@METHODS
@pytest.mark.parametrize("other", [{"packing": False}, {"max_tokens": 1}], ids=["unpacked", "a row at a time"])
def test_packing_does_not_change_the_trajectory(tmp_path: Path, method: Method, other: dict[str, int]) -> None:
    knobs = Knobs(steps=5, method=method, rate=5e-3, max_tokens=120)
    tensors, state = _finished(tmp_path / "one", knobs)
    others, other_state = _finished(tmp_path / "other", replace(knobs, **other))
    assert [p.loss for p in other_state.curve] == pytest.approx([p.loss for p in state.curve], rel=2e-5)
    assert other_state.validation[-1].scores.loss == pytest.approx(state.validation[-1].scores.loss, rel=2e-5)
    weights = [{n: t for n, t in found.items() if n.startswith("weights")} for found in (tensors, others)]
    assert largest_difference(*weights) < 2e-4


@METHODS
def test_the_loss_goes_down(tmp_path: Path, method: Method) -> None:
    _, state = _finished(tmp_path, Knobs(steps=30, rate=3e-2, evaluate_every=30, method=method, batch_size=12))
    assert state.curve[-1].loss < state.curve[0].loss - 0.01


@METHODS
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path, method: Method) -> None:
    knobs = Knobs(steps=6, method=method)
    whole, whole_state = _finished(tmp_path / "whole", knobs)
    resumed = interrupted(lambda: make_run(tmp_path / "cut", knobs), 3)
    state = resumed.finish()
    assert largest_difference(resumed.tensors(), whole) == 0.0
    assert [p.loss for p in state.curve] == [p.loss for p in whole_state.curve]
    assert state.validation == whole_state.validation


@METHODS
def test_the_base_model_is_measured_without_the_prompt(tmp_path: Path, method: Method) -> None:
    run = make_run(tmp_path, Knobs(method=method))
    disturb(run.attached, by=0.3)
    corpus: Corpus = documents([9, 13, 21, 6], seed=9)
    plain = make_run(tmp_path / "plain", Knobs())
    assert run.trainer.measure_base(corpus).scores.loss == pytest.approx(
        plain.trainer.measure_base(corpus).scores.loss, rel=1e-6
    )
    assert abs(run.trainer.measure(corpus).scores.loss - run.trainer.measure_base(corpus).scores.loss) > 1e-4


@METHODS
def test_labels_are_scored_after_the_prompt_as_one_by_one(method: Method) -> None:
    """The tree of answers behind one prompt gives what each answer gives alone."""
    from finetune_trainer.data.corpus import Choices, corpus_of
    from finetune_trainer.parallel.single import Single
    from finetune_trainer.transfer.evaluate import Layout, evaluate

    net = network()
    attached = _attach(net, method)
    disturb(attached, by=0.3)
    chosen = np.random.default_rng(3)
    answers = (np.array([5, 6, 1], np.int32), np.array([7, 1], np.int32))
    prompts, gold = chosen.integers(4, 12, 10).astype(np.int32), chosen.integers(0, 2, 10).astype(np.int32)
    tokens = [np.r_[chosen.integers(2, 97, n), answers[g]].astype(np.int32) for n, g in zip(prompts, gold, strict=True)]
    trained = [np.arange(len(t)) >= n for t, n in zip(tokens, prompts, strict=True)]
    corpus = corpus_of(tokens, trained, [4] * 10, choices=Choices(answers, prompts, gold)).after(attached.ids)
    abilities = probe(net, CPU)
    assert abilities.shares_prompts
    scores = []
    for shares in (True, False):
        model = LanguageModel(net, CPU, None, replace(abilities, shares_prompts=shares))
        layout = Layout(max_tokens=200, sequence_length=64, packing=shares, pad_id=0)
        with torch.no_grad():
            scores.append(evaluate(model, corpus, layout=layout, strategy=Single(), going_on=lambda: True).scores)
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-5)
    assert scores[0].accuracy == scores[1].accuracy
