"""`finetune plan`: what it says, in text and JSON, without torch and without a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.failures import ExitCode
from finetune_trainer.cli.main import main
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.model import read_shape
from tests.support.asked_in_process import ask_in_process
from tests.support.manifests import BASE, SCRIPT, changed
from tests.support.planning_models import LLAMA_3B, MIXTRAL
from tests.support.printed_json import conforms

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def write(folder: Path, **spec: Any) -> str:
    content = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "big"},
        "spec": {
            "model": {"uri": (folder / "model").as_uri()},
            "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
            "output": {"uri": "s3://corp/out"},
            **spec,
        },
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "job.yaml")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "-o", "json"]) == ExitCode.OK
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    conforms("plan", told)
    return told


def test_a_config_alone_has_the_parameters_of_the_model(model: Path) -> None:
    assert read_shape(model, weightless=True) == LLAMA_3B


def test_a_model_of_another_layout_is_not_guessed(model: Path) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | {"model_type": "mamba"}))
    with pytest.raises(ValueError, match="mamba is not laid out like Llama"):
        read_shape(model, weightless=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "has its weights quantised already (fp8)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"architectures": ["MyForCausalLM"], "auto_map": {"AutoModelForCausalLM": "my.MyForCausalLM"}}, "never run"),
    ],
)
def test_what_a_run_would_refuse_of_a_config_a_plan_refuses_in_the_same_words(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | changes))
    assert main(["plan", write(tmp_path), "--gpu", "H200"]) == ExitCode.CONFIG
    assert said in " ".join(capsys.readouterr().err.split())


def test_rows_are_no_longer_than_the_model_has_positions(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 512}))
    assert planned(capsys, write(tmp_path), "--gpu", "H200")["longestRow"] == 512
    asked = write(tmp_path, data={"train": [{"uri": "s3://corp/train.jsonl"}], "sequenceLength": 1000})
    assert main(["plan", asked, "--gpu", "H200"]) == ExitCode.CONFIG
    assert "1000 is more than the 512 positions" in " ".join(capsys.readouterr().err.split())


def test_a_mixture_of_experts_is_planned_by_what_a_token_meets(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_in_process(monkeypatch)
    (model / "config.json").write_text(json.dumps(MIXTRAL))
    told = planned(capsys, write(tmp_path), "--gpu", "H200")
    assert told["model"] == {
        "parameters": 46_702_792_704, "activeParameters": 12_879_925_248, "layers": 32,
        "withoutAdapter": 32 * 8 * (3 * 14336 * 4096 + 4096),
    }  # fmt: skip
    assert "qlora" not in {row["method"] for row in told["plans"]}
    assert main(["plan", write(tmp_path), "--gpu", "H200"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "a token passes 2 in each block and meets 12,879,925,248 of 46,702,792,704 parameters" in said
    assert "do not get an adapter; qlora does not support them" in said
    assert main(["plan", write(tmp_path, method={"type": "qlora"}), "--gpu", "H200"]) == ExitCode.CONFIG
    assert "would not be kept in 4 bits" in capsys.readouterr().err


def test_a_merged_model_is_told_with_its_size(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, output={"uri": "s3://corp/out", "merged": True})
    assert planned(capsys, file, "--gpu", "L40S")["mergedBytes"] == 2 * LLAMA_3B.parameters
    assert main(["plan", file, "--gpu", "L40S"]) == ExitCode.OK
    assert "output.merged adds 6.0 GiB to the artifact" in capsys.readouterr().out
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(90))
    assert planned(capsys, file, "--gpu", "L40S")["mergedBytes"] == 100


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_job_that_continues_is_planned_with_the_frozen_adapter(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """Of rank 8 on the attention of all blocks, or as large as the new one of rank 4 where it is not here."""
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    names = [f"base_model.model.model.layers.{n}.self_attn.{m}_proj.lora_A.weight" for n in range(28) for m in "qkvo"]
    write_tensors(earlier / "adapter_model.safetensors", dict.fromkeys(names, (8, 3072)))
    settings: dict[str, Any] = {"method": {"type": "lora", "lora": {"rank": 4, "targets": "attention"}}}
    uri = earlier.as_uri() if where == "local" else "s3://corp/earlier"
    found = []
    for changes in ({}, {"continueFrom": uri}):
        told = planned(capsys, write(tmp_path, **settings, **changes), "--gpu", "H100")
        found.append({row["method"]: row["bytes"] for row in told["plans"] if row["strategy"] == "ddp"})
    inputs_and_outputs = 28 * (2 * 3072 + 2 * (3072 + 1024) + 2 * 3072)
    held = 4 * (8 if where == "local" else 4) * inputs_and_outputs
    assert found[1]["lora"]["weights"] - found[0]["lora"]["weights"] == held
    assert found[1]["full"] == found[0]["full"]
    assert main(["plan", write(tmp_path, **settings, continueFrom=uri), "--gpu", "H100"]) == ExitCode.OK
    said = " ".join(capsys.readouterr().out.split())
    assert "auto would try" not in said, "which cannot continue"
    how = "read from its file" if where == "local" else "planned as large as the new one"
    assert f"continueFrom: {human(held)} for the frozen earlier adapter is included in states, {how}" in said


def test_replay_of_earlier_tasks_is_planned_by_their_files(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the manifest of a local artifact; of one elsewhere rows are taken to be long."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{number:04}", "completion": "{80 * "a"}"}}\n' for number in range(30)))
    source = {"uri": rows.as_uri(), "rows": 30, "files": {rows.as_uri(): 64 * "0"}}
    tasks = [
        {
            "name": name,
            "artifact": f"s3://corp/{name}",
            "sources": [source],
            "format": "completion",
            "sequenceLength": 64,
        }
        for name in ("one", "two")
    ]
    earlier = tmp_path / "earlier"
    made: dict[str, Any] = {"run": {"namespace": "n", "name": "two", "uid": "u"}, "kind": "model", "files": {}}
    earlier.mkdir()
    settings: dict[str, Any] = {"regularization": {"replay": {"source": "earlier", "fraction": 0.5}}}
    settings["data"] = {"train": [{"uri": rows.as_uri()}]}
    (earlier / "manifest.json").write_text(json.dumps(made | {"trainedOn": {"tasks": tasks}}))
    file = write(tmp_path, **settings, continueFrom=earlier.as_uri())
    assert main(["plan", file, "--gpu", "H100"]) == ExitCode.OK
    said = " ".join(capsys.readouterr().out.split())
    assert "at most 10,000 training rows of earlier tasks: one, two (60 rows with those held out)" in said
    here = planned(capsys, file, "--gpu", "H100")
    elsewhere = planned(capsys, write(tmp_path, **settings, continueFrom="s3://corp/two"), "--gpu", "H100")
    assert here["plans"][0]["seconds"] < elsewhere["plans"][0]["seconds"]
    (earlier / "manifest.json").write_text(json.dumps(made))
    assert main(["plan", write(tmp_path, **settings, continueFrom=earlier.as_uri()), "--gpu", "H100"]) != ExitCode.OK
    assert "does not name the training data of its job" in " ".join(capsys.readouterr().err.split())


def write_tensors(file: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """A header alone: nothing reads the numbers."""
    described, end = {}, 0
    for name, (rows, columns) in shapes.items():
        described[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [end, end + 4 * rows * columns]}
        end += 4 * rows * columns
    text = json.dumps(described).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)


def test_a_replay_that_the_run_decides_is_planned_with_the_most(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    general = {"uri": "s3://corp/general.jsonl"}
    for replay, told in (({}, True), ({"fraction": 0.25}, False)):
        file = write(tmp_path, regularization={"replay": {**replay, **general}})
        assert main(["plan", file, "--gpu", "L40S"]) == ExitCode.OK
        assert ("planned with the largest, 0.25" in capsys.readouterr().out) == told


def test_the_table_and_the_row_to_take(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\ndate: 2026-11-01\nperGpuHour: {l40s: 1.0}\n")
    file = write(tmp_path, resources={"limits": {"nvidia.com/gpu": 4}})
    size = ("--rows", "20000", "--tokens", "4200000")

    assert main(["plan", file, "--gpu", "L40S", "--prices", str(prices), *size]) == ExitCode.OK

    text = capsys.readouterr().out
    for word in ("3,212,749,824 parameters", "4 x L40S with 45.0 GiB", "* lora, ddp", "full, fsdp", "EUR", "prices of"):
        assert word in text
    told = planned(capsys, file, "--gpu", "L40S", "--prices", str(prices), *size)
    rows = {(row["method"], row["strategy"]): row for row in told["plans"]}
    assert not rows["full", "ddp"]["fits"]
    assert rows["full", "fsdp"]["fits"]
    assert [key for key, row in rows.items() if row["recommended"]] == [("lora", "ddp")]
    lora = rows["lora", "ddp"]
    assert lora["cost"] == pytest.approx(lora["seconds"] / 3600 * 4, abs=0.01)
    assert told["hint"] is None
    assert (told["ladder"], told["ladderRule"]["rule"]) == (None, "much data")
    assert told["ladderRule"]["rungs"] == ["prompt", "lora", "partial", "full"]
    assert "auto would try prompt, then lora, then partial, then full, by the rule 'much data': at least" in text


def test_the_recommended_row_is_first_and_what_does_not_fit_is_asked_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, method={"type": "full"})
    arguments = ["plan", file, "--gpu", "A100-80", "--memory", "24Gi", "--rows", "2000", "--tokens", "400000"]
    tables = []
    for options in ([], ["--all"]):
        assert main([*arguments, *options]) == ExitCode.OK
        text = capsys.readouterr().out
        tables.append(re.findall(r"^([* ]) (\w+), .* (yes|no) ", text, re.MULTILINE))
        assert ("--all shows them" in text) is (not options)
    short, whole = tables

    assert short[0] == ("*", "lora", "yes")
    fits = [answer for _, _, answer in short]
    assert fits == sorted(fits, reverse=True)
    assert {method for _, method, answer in short if answer == "no"} == {"full"}, "the job as it is written"
    assert whole[: len(short)] == short
    assert len(whole) > len(short)


def test_a_job_that_does_not_fit_is_told_what_would(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = planned(capsys, write(tmp_path, method={"type": "full"}), "--gpu", "A100-80", "--memory", "24Gi")
    assert told["hint"] == "Set method.type: lora."
    assert told["device"]["memoryBytes"] == 24 << 30
    assert {row["cost"] for row in told["plans"]} == {None}, "no price is made up"


def test_a_script_of_ones_own_cannot_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "script.yaml"
    file.write_text(yaml.safe_dump(changed(BASE, SCRIPT)))
    assert main(["plan", str(file)]) == ExitCode.CONFIG
    assert "a job with spec.command has no spec.model" in capsys.readouterr().err


def test_rows_of_local_files_are_counted(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "a row of some words"}\n' * 320)
    told = planned(capsys, write(tmp_path, data={"train": [{"uri": data.as_uri()}]}), "--gpu", "H100")
    assert (told["rows"], told["steps"]) == (320, 30)
    assert told["tokens"] == data.stat().st_size // 4
    sample = {"uri": data.as_uri(), "maxRows": 64}
    told = planned(capsys, write(tmp_path, data={"train": [sample, {"uri": data.as_uri()}]}), "--gpu", "H100")
    assert (told["rows"], told["tokens"]) == (384, data.stat().st_size * 6 // 5 // 4)


@pytest.mark.parametrize(
    ("changes", "arguments", "word"),
    [
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, [], "--gpu to H100"),
        ({}, ["--gpu", "abacus"], "abacus"),
        ({}, ["--gpu", "H100", "--memory", "lots"], "80Gi"),
        ({}, ["--gpu", "H100", "--prices", "job.yaml"], "perGpuHour"),
        ({"model": {"uri": "hf://org/nowhere"}}, [], "--model FOLDER"),
        ({"model": {"uri": "file:///nowhere/model"}}, ["--gpu", "H100"], "folder /nowhere/model does not exist"),
    ],
)
def test_what_is_missing_is_named(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    arguments: list[str],
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", write(tmp_path, **changes), *arguments]) == ExitCode.CONFIG
    assert word in capsys.readouterr().err


def test_planning_for_a_gpu_loads_nothing_heavy(model: Path, tmp_path: Path) -> None:
    heavy = ("torch", "numpy", "transformers", "rich", "obstore", "huggingface_hub")
    file = write(tmp_path)
    program = f"import sys; from finetune_trainer.cli.main import main; main(['plan', {file!r}, '--gpu', 'H100'])\n"
    program += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_this_machine_is_measured_and_the_step_followed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 264}  # fmt: skip
    (model / "config.json").write_text(json.dumps(CONFIG | small))
    file = write(tmp_path, training={"microBatchTokens": 256, "maxSteps": 5})
    told = planned(capsys, file, "--exact")
    assert told["device"]["name"] == "this machine"
    own = next(row for row in told["plans"] if row["method"] == "lora")
    states = sum(own["bytes"][part] for part in ("weights", "optimizer", "activations", "loss"))
    assert told["exactBytes"] == pytest.approx(states, rel=0.10)
    assert own["seconds"] > 0


def test_memory_is_planned_by_the_longest_row_of_local_files(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """99 rows of 100 bytes and one of 3,000: 1,000 tokens at three bytes each."""
    assert model
    rows = [json.dumps({"text": "x" * 88})] * 99 + [json.dumps({"text": "x" * 2988})]
    assert (len(rows[0]), len(rows[-1])) == (100, 3000)
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    local = write(tmp_path, data={"train": [{"uri": (tmp_path / "train.jsonl").as_uri()}]})
    assert planned(capsys, local, "--gpu", "H100")["longestRow"] == 1000
    assert planned(capsys, local, "--gpu", "H100", "--longest", "700")["longestRow"] == 700
    elsewhere = write(tmp_path)
    assert planned(capsys, elsewhere, "--gpu", "H100")["longestRow"] == 2048, "data.sequenceLength, if nobody knows"
    assert planned(capsys, elsewhere, "--gpu", "H100", "--rows", "9", "--tokens", "900")["longestRow"] == 2048
    assert main(["plan", elsewhere, "--gpu", "H100"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "rows of up to 2,048 tokens (data.sequenceLength; set --longest if they are shorter)" in said


def test_a_text_is_planned_by_its_passages(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty paragraphs of ten lines with 99 letters: a passage is complete after four, with 4,004 bytes."""
    assert model
    paragraph = ("x" * 99 + "\n") * 10
    (tmp_path / "train.txt").write_text("\n".join([paragraph] * 20))
    local = write(tmp_path, data={"train": [{"uri": (tmp_path / "train.txt").as_uri()}], "sequenceLength": 4096})
    told = planned(capsys, local, "--gpu", "H100")
    assert (told["rows"], told["longestRow"]) == (5, 1335)


def test_generated_answers_are_planned_and_under_fsdp_every_token_gathers_the_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3.2 billion parameters of 2 bytes: 6.4 GB are read for a token, 1.9 ms at 3.35 TB/s."""
    asked = {"nodes": 4, "data": {"train": [{"uri": "s3://corp/train.jsonl"}], "test": {"uri": "s3://corp/test.jsonl"}},
             "evaluation": {"generate": {"maxRows": 160, "maxNewTokens": 100}}}  # fmt: skip
    each = {}
    for strategy in ("ddp", "fsdp"):
        file = write(tmp_path, strategy={"type": strategy}, **asked)
        each[strategy] = planned(capsys, file, "--gpu", "H100", "--network", "100")["generation"]
    assert each["ddp"] == {"answers": 640, "passes": 1200, "seconds": pytest.approx(1200 * 0.00192, rel=0.01),
                           "gathered": False}  # fmt: skip
    assert each["fsdp"]["gathered"]
    assert each["fsdp"]["seconds"] == pytest.approx(1200 * (0.00192 + 0.75 * 6.425 / 12.5), rel=0.01)
    assert main(["plan", file, "--gpu", "H100"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "up to 640 answers in 1,200 passes of each process, for each of which all weights are gathered" in said
    assert planned(capsys, write(tmp_path), "--gpu", "H100")["generation"] is None
