"""`finetune serve-manifest`: what servers read, with revision and rank bound; what they cannot load is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_trainer.cli.artifacts import SERVERS as OFFERED
from finetune_trainer.cli.main import main
from finetune_trainer.cli.serving import RANKS, SERVERS, Served, dynamo, kserve, vllm
from finetune_trainer.methods.servable import LARGEST_RANK
from finetune_trainer.report.record import Provenance
from tests.support.documents import ROOT
from tests.support.small_artifact import adapter, committed, whole
from tests.support.small_report import record, spec

ADAPTER = Served(
    name="tickets", uri="s3://corp/models/tickets", base="hf://org/tiny", revision="12fd25f7", rank=20, stops=()
)
WHOLE = replace(ADAPTER, rank=None)

VLLM: list[tuple[str, Served, dict[str, Any]]] = [
    (
        "an adapter in a bucket",
        ADAPTER,
        {
            "model": "org/tiny", "revision": "12fd25f7", "enable-lora": True, "max-lora-rank": 32,
            "lora-modules": "tickets=/models/tickets",
        },
    ),
    (
        "an adapter that stops at tokens of its own, in a folder, on a base in a bucket",
        replace(ADAPTER, uri="file:///out", base="s3://corp/base", revision=None, rank=16, stops=(7, 9)),
        {
            "model": "/models/base", "enable-lora": True, "max-lora-rank": 16, "lora-modules": "tickets=/out",
            "generation-config": "/out",
        },
    ),
    ("a whole model", WHOLE, {"model": "/models/tickets", "served-model-name": "tickets"}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), [case[1:] for case in VLLM], ids=[case[0] for case in VLLM])
def test_the_configuration_file_of_vllm(given: Served, expected: dict[str, Any]) -> None:
    assert vllm(given)[1] == expected


KSERVE: list[tuple[str, Served, dict[str, Any]]] = [
    (
        "an adapter",
        ADAPTER,
        {
            "uri": "hf://org/tiny:12fd25f7", "name": "org/tiny",
            "lora": {"adapters": [{"name": "tickets", "uri": "s3://corp/models/tickets"}], "maxRank": 32},
        },
    ),
    (
        "an adapter on a base in a volume",
        replace(ADAPTER, base="pvc://models/tiny", revision=None, rank=8),
        {
            "uri": "pvc://models/tiny", "name": "models/tiny",
            "lora": {"adapters": [{"name": "tickets", "uri": "s3://corp/models/tickets"}], "maxRank": 8},
        },
    ),
    ("a whole model", WHOLE, {"uri": "s3://corp/models/tickets", "name": "tickets"}),
]  # fmt: skip

FIELDS = {
    "model": {"uri": str, "name": str, "lora": {"adapters": [{"uri": str, "name": str}], "maxRank": int}},
    "replicas": int,
}
"""Of LLMInferenceServiceSpec: pkg/apis/serving/v1alpha1/llm_inference_service_types.go of kserve/kserve at
01bfd2383253b56ef508660d8f2dcf1d771d186e, read on 2026-12-01. hf://org/name:revision is read by
python/storage/kserve_storage/kserve_storage.py."""


def fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in shape and fits(value[key], shape[key]) for key in value)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(each, shape[0]) for each in value)
    return isinstance(value, shape)


@pytest.mark.parametrize(("given", "expected"), [case[1:] for case in KSERVE], ids=[case[0] for case in KSERVE])
def test_the_object_of_kserve(given: Served, expected: dict[str, Any]) -> None:
    _, document = kserve(given)
    assert document["spec"]["model"] == expected
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1alpha1", "LLMInferenceService")
    assert fits(document["spec"], FIELDS)


def test_kserve_is_not_given_what_it_does_not_fetch() -> None:
    with pytest.raises(FinetuneError, match="does not fetch az://corp/out") as error:
        kserve(replace(ADAPTER, uri="az://corp/out"))
    assert error.value.reason is Reason.ModelUnsupported
    assert "stop_token_ids: [7]" in kserve(replace(ADAPTER, stops=(7,)))[0][1]


DYNAMO_FIELDS = {"modelName": str, "baseModelName": str, "modelType": str, "source": {"uri": str}}
"""Of DynamoModelSpec: deploy/operator/api/v1alpha1/dynamo_model_types.go of ai-dynamo/dynamo at
26a7b40526fc952d9bb9353fffb483070ddcce04, read on 2026-12-01; modelType is base, lora or adapter. What a worker needs
is in examples/backends/vllm/deploy/lora/agg_lora.yaml there, at 01c94133618e46f0be1476d8f48d5f3b8f0b738f."""


def test_the_object_of_dynamo_and_what_its_worker_needs() -> None:
    comments, document = dynamo(replace(ADAPTER, stops=(7,)))
    assert document["spec"] == {
        "modelName": "tickets", "baseModelName": "org/tiny", "modelType": "lora",
        "source": {"uri": "s3://corp/models/tickets"},
    }  # fmt: skip
    assert (document["apiVersion"], document["kind"]) == ("nvidia.com/v1alpha1", "DynamoModel")
    assert fits(document["spec"], DYNAMO_FIELDS)
    assert "--model org/tiny --enable-lora --max-lora-rank 32 --revision 12fd25f7" in comments[1]
    assert "Not tested" in comments[0]
    assert "stop_token_ids: [7]" in comments[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [(WHOLE, "is a whole model"), (replace(ADAPTER, uri="pvc://claim/out"), "Dynamo does not fetch pvc://claim/out")],
)
def test_dynamo_is_not_given_what_it_does_not_load(given: Served, said: str) -> None:
    with pytest.raises(FinetuneError, match=said) as error:
        dynamo(given)
    assert error.value.reason is Reason.ModelUnsupported


@pytest.mark.parametrize(("rank", "bound"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_the_rank_bound_is_one_that_vllm_takes(rank: int, bound: int) -> None:
    assert replace(ADAPTER, rank=rank).rank_bound == bound


def test_every_adapter_that_is_servable_has_a_bound() -> None:
    assert RANKS[-1] == LARGEST_RANK
    assert tuple(SERVERS) == OFFERED


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_an_artifact_is_read_from_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(tmp_path, r=20)
    committed(tmp_path, record(eos_token_ids=(7,)))

    assert main(["serve-manifest", str(tmp_path), "--for", "vllm"]) == ExitCode.OK
    assert printed(capsys) == {
        "model": "org/tiny", "revision": "12fd25f7", "enable-lora": True, "max-lora-rank": 32,
        "lora-modules": f"cardiology={tmp_path}", "generation-config": str(tmp_path),
    }  # fmt: skip
    assert main(["serve-manifest", str(tmp_path), "--for", "vllm", "--merged"]) == ExitCode.CONFIG
    assert "output.merged: true" in capsys.readouterr().err


def test_an_adapter_with_new_tokens_is_served_on_its_own_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(tmp_path)
    whole(tmp_path / "base")
    committed(tmp_path, record(spec=spec(vocabulary={"mine": True})))

    assert main(["serve-manifest", str(tmp_path), "--for", "vllm"]) == ExitCode.OK
    assert printed(capsys)["model"] == f"{tmp_path}/base"


def test_a_merged_model_is_served_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(tmp_path, use_dora=True)
    whole(tmp_path / "merged")
    committed(tmp_path)

    assert main(["serve-manifest", str(tmp_path), "--for", "vllm"]) == ExitCode.CONFIG
    said = " ".join(capsys.readouterr().err.split())
    assert "use_dora is set" in said
    assert "add --merged" in said
    assert main(["serve-manifest", str(tmp_path), "--for", "vllm", "--merged"]) == ExitCode.OK
    assert printed(capsys) == {"model": f"{tmp_path}/merged", "served-model-name": "cardiology"}


@pytest.mark.parametrize(
    ("config", "kind", "reason"),
    [
        ({"r": 1024}, "", "rank 1024 is more than 512"),
        ({"rank_pattern": {"q_proj": 8}}, "", "rank_pattern is set"),
        ({"peft_type": "PREFIX_TUNING"}, "", "of type PREFIX_TUNING"),
        ({}, "StrangeForConditionalGeneration", "not known to take adapters"),
    ],
)
def test_what_servers_cannot_load_is_refused(
    config: dict[str, Any], kind: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(tmp_path, **config)
    committed(tmp_path, record(provenance=Provenance(base_model="hf://org/tiny", model_class=kind)))

    assert main(["serve-manifest", str(tmp_path), "--for", "kserve"]) == ExitCode.CONFIG
    said = " ".join(capsys.readouterr().err.split())
    assert "reason ModelUnsupported" in said
    assert reason in said


def test_whole_models_are_judged_by_their_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole(tmp_path)
    uri = committed(tmp_path, kind="model")
    assert main(["serve-manifest", uri, "--for", "vllm"]) == ExitCode.OK
    assert printed(capsys)["model"] == str(tmp_path)

    whole(tmp_path, auto_map={"AutoModel": "x"})
    committed(tmp_path, kind="model")
    assert main(["serve-manifest", uri, "--for", "vllm"]) == ExitCode.CONFIG
    assert "code of its own" in capsys.readouterr().err


def test_what_is_not_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-manifest", str(tmp_path), "--for", "vllm"]) == ExitCode.DATA
    adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    committed(tmp_path)
    assert main(["serve-manifest", str(tmp_path), "--for", "vllm"]) == ExitCode.DATA
    assert "finetune verify" in " ".join(capsys.readouterr().err.split())


def test_the_page_shows_what_is_printed() -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    shown = re.findall(r"```yaml\n(.*?)```", page, re.S)
    given = replace(ADAPTER, base="hf://HuggingFaceTB/SmolLM2-135M-Instruct", rank=16)

    printed = [yaml.safe_load(text) for text in shown if "switchTest" not in text]
    assert printed == [make(given)[1] for make in SERVERS.values()]
