"""Terms against forgetting on ranks that are real processes: whole weights or shards, two learn what one learns."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from finetune_api.measurements import Scores
from finetune_api.methods import Lora, Method
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.divergence import divergence
from finetune_trainer.train.model import load_network
from finetune_trainer.transfer.evidence import Subject
from tests.support import rank_processes
from tests.support.training import (
    BASE,
    CPU,
    LENGTHS,
    Knobs,
    Place,
    Run,
    disturb,
    documents,
    held,
    largest_difference,
    make_run,
    network,
    weighed,
)

ROOT = Path(__file__).resolve().parents[2]
LORA = Method(type="lora", lora=Lora(rank=4))
SETTINGS = {
    "replay": Knobs(method=LORA, replay=5 / 3),
    "replay-kl": Knobs(method=LORA, replay=5 / 3, beta=2.0),
    "kl": Knobs(method=LORA, beta=2.0),
    "l2sp": Knobs(method=LORA, l2sp=50.0),
    "l2sp-full": Knobs(method=Method(type="full"), l2sp=50.0),
    "continued": Knobs(method=LORA, beta=2.0),
    "ewc": Knobs(method=LORA),
    "ewc-full": Knobs(method=Method(type="full")),
    "drift": Knobs(method=LORA),
}


@dataclass(frozen=True)
class Case:
    settings: str
    strategy: Literal["ddp", "fsdp", "deepspeed"]

    @property
    def folder(self) -> str:
        return f"{self.strategy}-{self.settings}"


TWO = [
    Case(settings, kind) for kind in ("ddp", "fsdp") for settings in ("replay-kl", "kl", "l2sp", "l2sp-full", "drift")
]
TWO += [Case("continued", "ddp"), Case("continued", "fsdp")]
TWO += [Case(settings, "ddp") for settings in ("ewc", "ewc-full")]
ZERO = [Case("replay", "deepspeed")]


def _run(root: Path, folder: str, settings: str, strategy: Strategy) -> dict[str, Any]:
    knobs = replace(SETTINGS[settings], steps=5, rate=1e-3)
    if settings == "continued":
        knobs = replace(knobs, earlier=root / "earlier")
    frozen = not knobs.method.trains_the_model
    net, _ = load_network(root / "base", dtype=torch.float32, strategy=strategy, device=CPU, frozen=frozen)
    run = make_run(root / folder, knobs, strategy=strategy, net=net)
    run = weighed(root / folder, run) if settings.startswith("ewc") else run
    run = held(root / folder, run) if settings == "drift" else run
    state = run.finish()
    return {
        "losses": [point.loss for point in state.curve],
        "added": [point.regularization or {} for point in state.curve],
        "norms": [point.gradient_norm for point in state.curve],
        "tensors": run.tensors(),
        "apart": _divergence(run) if knobs.beta else None,
    }


def _divergence(run: Run) -> float:
    """From the base model, on held-out rows; of weights that are far enough from it."""
    disturb(run.attached)
    corpus = documents(LENGTHS, seed=3)
    subject = Subject("test", "test", corpus, base=Scores(loss=1.0), tuned=None)
    mean, _ = divergence(run.trainer, run.attached, subject)
    return mean.value


def _rank(rank: int, world_size: int, port: int, root: str, cases: list[Case], library: str | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if library is not None:
        sys.path.append(library)
    ranks = Ddp.join(Place(rank, rank, world_size, world_size), CPU)
    for case in cases:
        settings = Settings(type=case.strategy, zero_stage=3 if case.strategy == "deepspeed" else None)
        strategy = spread(ranks, case.strategy, device=CPU, settings=settings)
        torch.save(_run(Path(root), case.folder, case.settings, strategy), f"{root}/{case.folder}.{rank}.pt")
        ranks.barrier()
    ranks.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regularization")
    network("Llama").save_pretrained(folder / "base")
    earlier = method_of(LORA).attach(network("Llama"), seed=3, base=BASE)
    disturb(earlier)
    (folder / "earlier").mkdir()
    earlier.export(folder / "earlier")
    for settings in SETTINGS:
        torch.save(_run(folder, f"alone-{settings}", settings, Single()), folder / f"alone-{settings}.pt")
    rank_processes.start(_rank, 2, str(folder), TWO, None)
    return folder


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.folder)
def test_two_ranks_learn_what_one_learns(root: Path, case: Case) -> None:
    _compare(root, case)


def test_replay_works_under_deepspeed(root: Path) -> None:
    made = subprocess.run([ROOT / "tools" / "deepspeed.sh"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("DeepSpeed cannot be installed here: tools/deepspeed.sh says why")
    rank_processes.start(_rank, 2, str(root), ZERO, made.stdout.strip())
    _compare(root, ZERO[0])


def _compare(root: Path, case: Case) -> None:
    alone = torch.load(root / f"alone-{case.settings}.pt")
    ranks = [torch.load(root / f"{case.folder}.{rank}.pt") for rank in range(2)]
    told = ranks[0]
    assert told["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    assert told["norms"] == pytest.approx(alone["norms"], rel=1e-5)
    for mine, other in zip(told["added"], alone["added"], strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-7)
    assert {key for each in told["added"] for key in each} == _keys(case)
    assert told["apart"] == ranks[1]["apart"] == (alone["apart"] and pytest.approx(alone["apart"], rel=1e-4))
    assert alone["apart"] is None or alone["apart"] > 0.001
    expected = {name: tensor for name, tensor in alone["tensors"].items() if name.startswith("weights")}
    found = {name: _whole([each["tensors"].get(name) for each in ranks], tensor) for name, tensor in expected.items()}
    assert largest_difference(found, expected) < 5e-6


def _whole(rows: list[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
    """Each rank has its rows, or the first one has all."""
    first, second = rows
    assert first is not None
    if first.shape == like.shape:
        return first
    assert second is not None
    return torch.cat([first, second])


def _keys(case: Case) -> set[str]:
    knobs = SETTINGS[case.settings]
    asked = {
        "replay": knobs.replay,
        "klToBase": knobs.beta,
        "l2sp": knobs.l2sp,
        "ewc": case.settings[:3] == "ewc",
        "drift": case.settings == "drift",
    }
    return {name for name, number in asked.items() if number}
