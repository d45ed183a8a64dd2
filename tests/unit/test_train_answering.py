"""Answers in padded batches with a cache are those of one prompt at a time without either."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from finetune_api.generated_text import Mode
from finetune_api.methods import Lora, Method
from finetune_trainer.methods.base import HasPrompt
from finetune_trainer.methods.registry import method_of
from finetune_trainer.train.written import answers
from finetune_trainer.transfer.evaluate import Stopped
from finetune_trainer.transfer.generated.answers import Answers
from tests.support.training import BASE, VOCAB, disturb, model, network

NEW = 6
LENGTHS = (3, 11, 7, 5, 9, 4, 12, 8, 6, 10)


def prompts(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    dice = np.random.default_rng(3)
    return [dice.integers(2, VOCAB, length).astype(np.int32) for length in lengths]


def said(net: nn.Module, given: list[np.ndarray], mode: Mode = "greedy", **more: object) -> Answers:
    settings: dict[str, object] = {"new": NEW, "stops": frozenset({1}), "pad": 1, "seed": 1, "most_tokens": 64}
    return answers(model(net), given, mode=mode, **{**settings, **more})  # type: ignore[arg-type]


def one_at_a_time(net: nn.Module, given: list[np.ndarray]) -> Answers:
    """Greedy, by whole passes."""
    tokens, stopped = [], []
    for prompt in given:
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        for _ in range(NEW):
            with torch.no_grad():
                likeliest = net(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, likeliest.view(1, 1)], dim=1)
            if likeliest == 1:
                break
        stopped.append(bool(ids[0, -1] == 1))
        tokens.append(tuple(ids[0, len(prompt) :].tolist())[: -1 if stopped[-1] else None])
    return Answers(tuple(tokens), tuple(stopped))


def ending(kind: str = "Llama") -> nn.Module:
    """A network that ends some answers: the end token's logits are raised."""
    net = network(kind, tie_word_embeddings=False)
    with torch.no_grad():
        net.get_output_embeddings().weight[1] *= 3  # type: ignore[operator]
    return net


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma2", "Qwen2"])
def test_greedy_answers_are_those_of_whole_passes_without_padding(kind: str) -> None:
    net = ending(kind)
    found = said(net, prompts())
    assert found == one_at_a_time(net, prompts())
    if kind == "Llama":
        assert {*found.stopped} == {True, False}


def test_the_models_own_settings_decide_nothing_and_are_there_afterwards() -> None:
    net = ending()
    plain = said(net, prompts())
    own = net.generation_config
    own.repetition_penalty, own.do_sample, own.max_length = 5.0, True, 4  # type: ignore[union-attr, assignment]
    net.train()
    assert said(net, prompts()) == plain
    assert net.generation_config is own
    assert net.training


def test_sampled_answers_depend_on_the_seed_alone() -> None:
    net = ending()
    first = said(net, prompts(), "sampled")
    torch.manual_seed(99)
    assert said(net, prompts(), "sampled") == first
    assert said(net, prompts(), "sampled", seed=2) != first
    assert first != said(net, prompts())


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_what_is_attached_takes_part(kind: str) -> None:
    net = network()
    settings = {"lora": Lora(rank=4)} if kind == "lora" else {}
    attached = method_of(Method(type=kind, **settings)).attach(net, seed=1, base=BASE)  # type: ignore[arg-type]
    disturb(attached, by=1.0)
    ids = attached.ids if isinstance(attached, HasPrompt) else np.zeros(0, np.int32)
    given = [np.concatenate([ids, each]) for each in prompts()]
    assert said(net, given) == one_at_a_time(net, given)


def test_progress_is_told_and_a_request_to_stop_is_heard_between_batches() -> None:
    seen: list[int] = []
    said(network(), prompts(), progress=seen.append)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert max(seen) < len(LENGTHS)
    with pytest.raises(Stopped):
        said(network(), prompts(), stop_requested=lambda: len(seen) > 1)
