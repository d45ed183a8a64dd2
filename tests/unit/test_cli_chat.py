"""`finetune chat`: both models answer as with transformers and PEFT, to the prompt that rows were trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.failures import ExitCode
from finetune_api.status import ResolvedPlan
from finetune_api.text import printable
from finetune_trainer.cli.chat import Wish, load, prompt_of, side_by_side
from finetune_trainer.cli.main import main
from finetune_trainer.report.record import Provenance, RunRecord
from finetune_trainer.statistics import DataRecord, Statistics
from tests.support.printed_json import conforms
from tests.support.small_artifact import committed
from tests.support.small_report import record, spec
from tests.support.tiny_model import tiny_model, tiny_tokenizer

ASKED = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


def of(base: Path, method: str = "lora", form: str = "chat", **more: Any) -> RunRecord:
    statistics = Statistics(format=form, labels=("a", "b"), splits={}, digests={}, tokenizer="")
    return record(
        plan=ResolvedPlan(method=method), data=DataRecord(statistics=statistics),
        provenance=Provenance(base_model=base.as_uri()), **more,
    )  # fmt: skip


def tuned(base: Path, folder: Path, config: Any) -> None:
    """An adapter whose weights change every answer."""
    torch.manual_seed(1)
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5)
    network.save_pretrained(folder)
    tiny_tokenizer(folder)


def answer(network: Any, *, seed: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(network.config.name_or_path)
    tokens = tokenizer(ASKED, return_tensors="pt", add_special_tokens=False)
    torch.manual_seed(seed)
    written = network.eval().generate(**tokens, max_new_tokens=8, do_sample=True, temperature=1.5, pad_token_id=258)
    found: str = tokenizer.decode(written[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    return printable(found).strip()


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("lora", LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])),
        ("prompt", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    ],
)
def test_both_answers_are_those_of_transformers_and_peft(
    method: str, config: Any, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned(base, tmp_path, config)
    committed(tmp_path, of(base, method))
    command = ["chat", str(tmp_path), "--prompt", "hello", "--max-new-tokens", "8", "--home", str(tmp_path / "home")]

    assert main([*command, "-o", "json", "--temperature", "1.5", "--seed", "3"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    network = AutoModelForCausalLM.from_pretrained(base)
    expected = answer(network, seed=3)
    changed = answer(PeftModel.from_pretrained(network, tmp_path), seed=3)
    assert (printed["base"], printed["tuned"]) == (expected, changed)
    assert expected != changed
    conforms("chat", printed)


def test_on_a_terminal_answers_are_shown_while_they_are_written(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(base, tmp_path, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    committed(tmp_path, of(base, "lora"))
    pair = load(tmp_path.as_uri(), cache=tmp_path / "cache")
    wish = Wish(prompt="hello", max_new_tokens=8, temperature=0.0, seed=1, raw=False, as_json=False)
    pieces: dict[str, list[str]] = {"base": [], "tuned": []}

    answers = pair.answers("hello", wish, lambda side, piece: pieces[side].append(piece))
    assert tuple(printable("".join(pieces[side])).strip() for side in ("base", "tuned")) == answers
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["chat", str(tmp_path), "--prompt", "hello", "--max-new-tokens", "8"]) == ExitCode.OK
    streamed, _, last = capsys.readouterr().out.rpartition("\x1b[2K")
    assert "tuned" in streamed
    assert last.splitlines() == side_by_side(*answers, width=80)


def test_the_tuned_model_stops_where_it_was_taught_to(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = AutoModelForCausalLM.from_pretrained(base)
    network.save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    first = int(torch.argmax(network(**AutoTokenizer.from_pretrained(base)(ASKED, return_tensors="pt")).logits[0, -1]))
    committed(tmp_path, of(base, "full", eos_token_ids=(first,)), kind="model")
    monkeypatch.setenv("COLUMNS", "80")

    assert main(["chat", str(tmp_path), "--raw", "--prompt", ASKED, "--max-new-tokens", "8"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["base", "tuned"]
    written = AutoTokenizer.from_pretrained(base).decode([first], skip_special_tokens=True).strip()
    assert [line[41:].strip() for line in lines[2:]][:1] == [written]


def test_each_line_of_the_input_is_a_prompt(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    committed(tmp_path, of(base, "full"), kind="model")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))

    assert main(["chat", str(tmp_path), "--max-new-tokens", "1", "--temperature", "1", "-o", "json"]) == ExitCode.OK
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["prompt"] for each in printed] == ["one", "two"]
    assert all(each["base"] == each["tuned"] for each in printed), "the same model, prompt and seed"


def test_a_classifier_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed(tmp_path, of(base, "probe"))
    assert main(["chat", str(tmp_path), "--prompt", "hello"]) == ExitCode.CONFIG
    assert "is a classifier, which writes no text" in " ".join(capsys.readouterr().err.split())


QUESTION = "Classify the text. Answer with one of: a, b.\n\nhello"
PROMPTS = [
    ("chat", True, (ASKED, True)),
    ("chat", False, ("hello", False)),
    ("completion", True, ("hello", False)),
    ("text", True, ("hello", False)),
    ("classification", True, (ASKED.replace("hello", QUESTION), True)),
    ("classification", False, ("hello\nLabel:", False)),
]


@pytest.mark.parametrize(("form", "template", "expected"), PROMPTS)
def test_the_prompt_is_that_of_the_training_rows(
    form: str, template: bool, expected: tuple[str, bool], base: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    if not template:
        tokenizer.chat_template = None
    assert prompt_of(of(base, form=form), tokenizer, "hello") == expected
    own = {"train": [{"uri": "s3://corp/t.jsonl"}], "classification": {"instruction": "Which?"}}
    if form == "classification" and template:
        assert "Which?\n\nhello" in prompt_of(of(base, form=form, spec=spec(data=own)), tokenizer, "hello")[0]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (40, ["base", "yes", "or no", "", "tuned", "no"]),
        (63, [f"{'base':<33}tuned", f"{'-' * 30}   {'-' * 30}", f"{'yes':<33}no", "or no"]),
    ],
)
def test_columns_where_there_is_space_for_them(width: int, lines: list[str]) -> None:
    assert side_by_side("yes\nor no", "no", width=width) == lines


def test_long_lines_stay_in_their_column() -> None:
    rows = side_by_side("word " * 40, "other " * 40, width=80)
    assert all(len(row) <= 80 for row in rows)
    assert all("other" not in row[:38] and "word" not in row[38:] for row in rows)
