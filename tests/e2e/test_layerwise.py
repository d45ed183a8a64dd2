"""spec.diagnostics in a run: what two ranks measure layer by layer is what one process finds, with whole weights and
with shards, and what `finetune analyze` finds in the artifact."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.failures import ExitCode
from finetune_api.methods import Lora, Method
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.cli.main import main
from finetune_trainer.data.token_sample import TokenSample
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.model import load_network
from finetune_trainer.train.token_states import gathered, layout_of, part_of_states
from tests.support import rank_processes
from tests.support.local_runs import Workspace
from tests.support.tiny_model import numbers_as_text
from tests.support.tokenizers import write_jsonl
from tests.support.training import BASE, CPU, LENGTHS, Place, disturb, documents, model, network

pytestmark = pytest.mark.timeout(600)

LAYERS = (0, 1, 2)


def _states(root: Path, strategy: Strategy) -> list[torch.Tensor]:
    """Of an adapter that has learned something."""
    net, _ = load_network(root / "base", dtype=torch.float32, strategy=strategy, device=CPU, frozen=True)
    disturb(method_of(Method(type="lora", lora=Lora(rank=4))).attach(net, seed=1, base=BASE))
    language_model = model(net, strategy)
    sample = TokenSample.of(documents(LENGTHS), tokens=80, seed=1)
    layout = layout_of(language_model, pad_id=0)
    part = part_of_states(language_model, sample, LAYERS, layout=layout, strategy=strategy, going_on=lambda: True)
    return [torch.from_numpy(each) for each in gathered(part, strategy, alive=lambda: None)]


def _rank(rank: int, world_size: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ddp.join(Place(rank, rank, world_size, world_size), CPU)
    for kind in ("ddp", "fsdp"):
        strategy = spread(ranks, kind, device=CPU, settings=Settings(type=kind))
        torch.save(_states(Path(root), strategy), f"{root}/{kind}.{rank}.pt")
        ranks.barrier()
    ranks.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    network("Llama").save_pretrained(folder / "base")
    rank_processes.start(_rank, 3, str(folder))
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_three_ranks_gather_the_states_that_one_computes(root: Path, kind: str) -> None:
    alone = _states(root, Single())
    assert float(alone[2].abs().mean()) > 0.01
    for rank in range(3):
        found = torch.load(root / f"{kind}.{rank}.pt")
        for mine, expected in zip(found, alone, strict=True):
            assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-6)


def test_a_run_with_shards_reports_what_an_analysis_of_its_artifact_finds(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(folder=tmp_path, files=files)
    code = write_jsonl(
        tmp_path / "code.jsonl", *({"text": f"def f{n}(a, b={n}):\n    return a * {n} + b"} for n in range(12))
    )
    asked = workspace.manifest(
        strategy={"type": "fsdp"},
        method={"type": "lora", "lora": {"rank": 4, "layers": 1}},
        diagnostics={"similarity": "cka", "probes": [{"name": "code", "uri": code, "labels": "pythonTokens"}]},
    )
    asked["spec"]["data"] |= {"general": {"uri": numbers_as_text(tmp_path / "general.jsonl").as_uri()}}
    lines = (files / "corpus" / "train.jsonl").read_text().splitlines(keepends=True)
    sources = {"many": lines[:48], "few": lines[48:]}
    for name, rows in sources.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    train = [{"name": name, "uri": (tmp_path / f"{name}.jsonl").as_uri()} for name in sources]
    asked["spec"]["data"] |= {"train": train, "mixing": {"temperature": 2}, "validation": {"fraction": 0.3}}
    asked["spec"]["training"] |= {"learningRate": 0.02}
    assert workspace.run(asked) == ExitCode.OK, workspace.story()
    output = tmp_path / "output" / "tiny"
    record = json.loads((output / "run.json").read_bytes())
    told = record["inside"]
    data = {(each["kind"], each["name"]): each for each in record["evaluation"]["data"]}
    parts = [data["slice", name] for name in sources]
    assert sum(part["rows"] for part in parts) == data["validation", "validation"]["rows"]
    assert all((output / "evaluation" / "slice" / f"{name}.parquet").is_file() for name in sources)
    many, few = record["data"]["weights"].values()
    assert many < 1 < few, "a temperature of 2 makes the sources more equal"
    [general] = told["similarity"]
    assert general["name"] == "general"
    assert [each["cka"] for each in general["layers"][:2]] == [1, 1], "only the last layer has an adapter"
    assert general["layers"][2]["cka"] < 0.99
    assert general["changedFrom"] == 2
    [note] = told["notes"]
    assert note.startswith("test is not compared layer by layer: it has")
    assert told["recommendations"]
    [probe] = told["concepts"]
    assert probe["labels"] == ["keyword", "name", "number", "operator"]
    assert all(layer["accuracy"] > probe["majority"] for layer in probe["layers"])
    assert [layer["accuracy"] == layer["tunedAccuracy"] for layer in probe["layers"][:2]] == [True, True]
    page = (output / "report.html").read_text()
    assert "<h2>Layers</h2>" in page
    assert "States on general" in page
    assert _numbers(_analysis(workspace, capsys)["data"][0]) == pytest.approx(_numbers(general), abs=1e-5)


def _analysis(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    home = ["--home", str(workspace.folder / ".finetune")]
    capsys.readouterr()
    assert main(["analyze", str(workspace.folder / "tiny.yaml"), "--against", "tiny", "-o", "json", *home]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    return {f"{layer['layer']} {name}": value for layer in found["layers"] for name, value in layer.items()}
