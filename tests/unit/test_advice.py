"""Warnings about valid manifests: a launcher inside of the command trains at world size 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from finetune_api.accelerators import count
from finetune_api.advice import advice, undecidable
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.decide import decide
from finetune_operator.state.status import find
from finetune_trainer.cli.validate import validate_files
from tests.support.manifests import BASE, SCRIPT, changed
from tests.support.operator_objects import NOW, job, seen


def script(*command: str, nodes: int = 2) -> FineTuneJobSpec:
    return FineTuneJobSpec(command=command, nodes=nodes)


LAUNCHED = [
    (["bash", "-c", "accelerate launch train.py"], "accelerate launch"),
    (["sh", "-ec", "cd /work && exec accelerate  launch --num_processes 8 train.py"], "accelerate launch"),
    (["/bin/bash", "-lc", "set -e\npip list; NCCL_DEBUG=INFO accelerate launch \\\n  train.py"], "accelerate launch"),
    (["env", "A=b", "accelerate", "launch", "train.py"], "accelerate launch"),
    (["accelerate-launch", "train.py"], "accelerate-launch"),
    (["python", "-m", "accelerate.commands.launch", "train.py"], "python -m accelerate.commands.launch"),
    (["python3.11", "-u", "-m", "torch.distributed.run", "train.py"], "python -m torch.distributed.run"),
    (["trl", "sft", "--model_name_or_path", "x"], "trl"),
    (["/opt/venv/bin/trl", "dpo", "--config", "dpo.yaml"], "trl"),
    (["uv", "run", "trl", "sft"], "trl"),
    (["bash", "-c", "if true; then torchrun train.py; fi"], "torchrun"),
    (["bash", "-c", "deepspeed train.py"], "deepspeed"),
]


@pytest.mark.parametrize(("command", "name"), LAUNCHED, ids=[" ".join(command) for command, _ in LAUNCHED])
def test_a_launcher_is_found(command: list[str], name: str) -> None:
    (told,) = advice(script(*command))
    assert told.startswith(f"spec.command runs {name}, which starts its own processes")
    assert "world size 1" in told


HARMLESS = [
    ["python", "train.py", "--deepspeed", "ds.json"],
    ["python", "train.py", "--framework", "trl"],
    ["python", "-m", "train", "deepspeed"],
    ["train.py"],
    ["accelerate", "env"],
    ["bash", "-c", "pip install trl accelerate && python train.py"],
    ["bash", "-c", "echo 'accelerate launch is not needed'; python train.py"],
    ["bash", "train.sh"],
    ["bash", "-c", "python train.py # torchrun is ours"],
    ["bash", "-c", "echo 'a quote that never ends"],
]


@pytest.mark.parametrize("command", HARMLESS, ids=" ".join)
def test_what_only_speaks_of_one_is_not(command: list[str]) -> None:
    assert advice(script(*command)) == ()


def test_a_single_process_may_be_launched_by_anybody() -> None:
    assert advice(script("trl", "sft", nodes=1)) == ()


def test_validate_says_so_and_the_manifest_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(changed(BASE, {k: v for k, v in SCRIPT.items() if k != "spec.command"}
                                           | {"spec.command": ["trl", "sft"], "spec.nodes": 2})))  # fmt: skip
    assert validate_files([str(file)]) == 0
    printed = capsys.readouterr()
    assert "valid: cardiology" in printed.out
    assert "warning: spec.command runs trl" in printed.err


def test_a_condition_says_so() -> None:
    decision = decide(seen(job(), spec=script("trl", "sft")), NOW)
    told = find(decision.status, "Warned")
    assert told is not None
    assert (told.status, told.reason, "spec.command runs trl" in told.message) == ("True", "LauncherInCommand", True)
    assert len(decision.create) == 2, "it is a warning, and it may be meant"
    assert find(decide(seen(job(), spec=script("train.py")), NOW).status, "Warned") is None


@pytest.mark.parametrize(
    ("limits", "processes"),
    [
        ({}, 1),
        ({"cpu": 8, "rdma/hca": 2}, 1),
        ({"nvidia.com/gpu": 8}, 8),
        ({"amd.com/gpu": "4"}, 4),
        ({"nvidia.com/mig-1g.5gb": 1}, 1),
        ({"nvidia.com/gpu": 2, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30}, 2),
    ],
)
def test_auto_counts_devices(limits: dict[str, int | str], processes: int) -> None:
    assert count(limits) == processes


@pytest.mark.parametrize(
    ("guards", "generate", "says"),
    [
        ({"minStops": 0.95}, {}, ""),
        (
            {"minStops": 0.99},
            {},
            "guards.generation.minStops 0.99 cannot be passed with 128 prompts: it takes at least 368",
        ),
        ({"minJsonValid": 0.99}, {"maxRows": 368}, ""),
        ({"minJsonValid": 1}, {"maxRows": 2000}, "a share of 1 is proved by no number of them"),
        ({"minStops": 0}, {"maxRows": 20}, ""),
    ],
)
def test_a_guard_that_no_answers_can_pass_is_told(
    guards: dict[str, float], generate: dict[str, int], says: str
) -> None:
    raw = changed(BASE, {"spec.guards": {"generation": guards}, "spec.evaluation": {"generate": generate}})
    told = undecidable(FineTuneJobSpec.model_validate_json(json.dumps(raw["spec"])))
    assert len(told) == bool(says)
    assert says in "".join(told)


def test_validate_says_which_ladders_a_cluster_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    for skips, told in ((False, ""), (True, "valid with finetune run only: the number of a step is another batch")):
        ladder = {"spec.method": {"type": "auto"}, "spec.nodes": 2, "spec.training.skipBadBatch": skips}
        file.write_text(yaml.safe_dump(changed(BASE, ladder)))
        assert validate_files([str(file)]) == 0
        printed = capsys.readouterr().err
        assert told in printed if told else not printed
