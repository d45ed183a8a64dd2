"""The kit for a borrowed GPU, as far as it is arithmetic, tables and files; tests/e2e runs it whole, on CPUs."""

from __future__ import annotations

import json
import re
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import arithmetic, conduct, judge, table
from tests.gpu.kit import environment
from tests.gpu.notes import Check, Notes
from tests.gpu.parts import DEEPSPEED, RIGHT, Part, parts_of, together
from tests.gpu.sizes import CARD, LLAMA_1B, LLAMA_8B, REHEARSAL
from tests.gpu.slim import slim
from tests.gpu.timeline import Event, account

ROOT = Path(__file__).parents[2]
GIB = 2**30


def test_parameters_are_those_of_the_public_models() -> None:
    """As safetensors' headers on the hub count them."""
    assert arithmetic.parameters(LLAMA_1B) == 1_235_814_400
    assert arithmetic.parameters(LLAMA_8B) == 8_030_261_248


def test_operations_of_full_training_are_those_that_torchtitan_counts() -> None:
    """6 (parameters - embeddings) + 12 layers heads size length; without the norms, which multiply no matrix."""
    embeddings, norms = 128256 * 4096, 65 * 4096
    expected = 6 * (8_030_261_248 - embeddings - norms) + 12 * 32 * 32 * 128 * 8192
    assert arithmetic.token_operations(LLAMA_8B, trains="all", context=8192) == expected


def test_a_frozen_weight_costs_a_third_less_and_its_adapter_all() -> None:
    full = arithmetic.token_operations(LLAMA_8B, trains="all", context=0)
    assert arithmetic.token_operations(LLAMA_8B, trains="adapter", context=0) == pytest.approx(full * 2 / 3)
    more = arithmetic.token_operations(LLAMA_8B, trains="adapter", context=0, adapter_weights=10)
    assert more - full * 2 / 3 == pytest.approx(60)


def test_the_share_of_the_peak() -> None:
    """1B at 60,000 tokens/s on an H200: 6 x 1.236e9 operations a token, 4.4e14 of 9.89e14 a second."""
    operations = arithmetic.token_operations(LLAMA_1B, trains="all", context=0)
    assert arithmetic.share_of_peak(60_000, operations, 989e12) == pytest.approx(0.4498, abs=1e-3)


@pytest.mark.parametrize(("lengths", "expected"), [([1], 1), ([3], 2), ([3, 3], 2), ([1, 3], 7 / 4)])
def test_what_a_token_sees(lengths: list[int], expected: float) -> None:
    assert arithmetic.mean_context(lengths) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [([2.0, 4.0], [2.0, 4.0], 0), ([2.0, 4.4], [2.0, 4.0], 0.1), ([2.0], [2.0, 4.0], float("inf")),
     ([], [], float("inf")), ([float("nan")], [1.0], float("inf"))],
)  # fmt: skip
def test_losses_apart(left: list[float], right: list[float], expected: float) -> None:
    assert arithmetic.apart(left, right) == pytest.approx(expected)


def test_a_plan_that_asks_for_more_is_above_and_one_for_less_below() -> None:
    assert arithmetic.off(100, 105) == pytest.approx(0.05)
    assert arithmetic.off(100, 80) == pytest.approx(-0.2)


def test_time_in_which_something_runs_and_the_gaps() -> None:
    assert arithmetic.busy([(0, 4), (2, 6), (10, 11), (3, 5)]) == (7, [(6, 10)])
    assert arithmetic.busy([]) == (0, [])


LOSSES = [5.5, 5.4, 5.3]


def parts(**changed: Any) -> dict[str, Any]:
    """Results of a good run, or with other facts of some parts."""

    def side(name: str, title: str, seconds: float, reserved: int, **more: Any) -> dict[str, Any]:
        facts = {
            "title": title, "side": name, "tokens": 1000, "steps": 20, "seconds": seconds, "reserved": reserved,
            "allocated": reserved, "losses": [11.0], "trainable": 7, "versions": f"{name} 1.0", "double": False,
            "operations": 1e10, "peak_operations": 1e15, "setting": "", "computed": "",
        }  # fmt: skip
        return {**facts, **more}

    facts = {
        "right/machine": {"device": "NVIDIA H200", "versions": {"torch": "2.11.0"}, "smi": {"driver": "580.1"}},
        "right/reference": {"lora": LOSSES, "lora/few": LOSSES},
        "right/numbers": {"lora/float32": LOSSES, "lora/unpacked": LOSSES, "lora/bfloat16": [5.51, 5.41, 5.31]},
        "right/methods": {"lora/few": LOSSES},
        "fits/1b-full": {
            "title": "1B, full", "tokens": 4096, "planned": 21 * GIB, "reserved": 20 * GIB, "allocated": 19 * GIB,
        },
        "fast/1b-full/ours/1": side("ours", "1B, full", 0.4, 8 * GIB),
        "fast/1b-full/ours/2": side("ours", "1B, full", 0.42, 9 * GIB),
        "fast/1b-full/trl/1": side("trl", "1B, full", 0.5, 10 * GIB),
        "time/8b-lora": {
            "title": "8B, LoRA", "syncs_a_step": 0.0, "seconds_a_step": 0.5, "idle_share": 0.1, "launches_a_step": 9,
            "kernels": [{"name": "gemm|a", "share": 1.0, "milliseconds": 5.0, "calls": 3}],
            "gaps": [{"microseconds": 9.0, "after": "a", "before": "b"}],
        },
    }  # fmt: skip
    facts |= {name: {**facts.get(name, {}), **new} for name, new in changed.items()}
    return {name: {"state": "done", "seconds": 1.0, "checks": [], "facts": its} for name, its in facts.items()}


def verdicts(**changed: Any) -> dict[str, str]:
    return {check.name: check.verdict for check in judge.judge(parts(**changed))}


def test_a_good_run_has_passed_all() -> None:
    found = verdicts()
    assert set(found.values()) == {"passed"}
    for name in ("lora, float32 beside a CPU, first step", "plan of 1B, full", "1B, full: tokens/s, ours over trl",
                 "1B, full: peak memory, ours over trl", "1B, full: MFU of ours",
                 "8B, LoRA: waits for the GPU, a step"):  # fmt: skip
        assert name in found


@pytest.mark.parametrize(
    ("changed", "name", "verdict"),
    [
        ({"right/numbers": {"lora/float32": [5.5001, 5.4, 5.3]}}, "lora, float32 beside a CPU, first step", "failed"),
        ({"right/numbers": {"lora/float32": [5.5, 5.4, 5.301]}}, "lora, float32 beside a CPU, 3 steps", "failed"),
        ({"right/numbers": {"lora/unpacked": [5.5, 5.4, 5.4]}}, "lora, packed beside unpacked", "failed"),
        ({"right/numbers": {"lora/bfloat16": [5.7, 5.4, 5.3]}}, "lora, bfloat16 beside a CPU in float32", "failed"),
        ({"right/methods": {"lora/few": [5.7, 5.4, 5.3]}}, "lora beside a CPU, first step", "failed"),
        ({"right/methods": {"lora/few": [5.5]}}, "lora beside a CPU, 1 steps", "failed"),
        ({"fits/1b-full": {"reserved": 30 * GIB}}, "plan of 1B, full", "missed"),
        ({"fits/1b-full": {"reserved": 18 * GIB}}, "plan of 1B, full", "missed"),
        ({"fast/1b-full/trl/1": {"seconds": 0.44}}, "1B, full: tokens/s, ours over trl", "missed"),
        ({"fast/1b-full/trl/1": {"reserved": 9 * GIB}}, "1B, full: peak memory, ours over trl", "missed"),
        ({"fast/1b-full/trl/1": {"losses": [9.0]}}, "1B, full: trl computes the same", "missed"),
        ({"fast/1b-full/trl/1": {"trainable": 8}}, "1B, full: trl computes the same", "missed"),
        ({"fast/1b-full/ours/1": {"operations": 1e9}}, "1B, full: MFU of ours", "missed"),
        ({"time/8b-lora": {"syncs_a_step": 2.0}}, "8B, LoRA: waits for the GPU, a step", "missed"),
    ],
)
def test_what_is_not_as_it_should_be(changed: dict[str, Any], name: str, verdict: str) -> None:
    assert verdicts(**changed)[name] == verdict


def test_a_rival_that_computes_something_else_is_not_compared() -> None:
    assert "1B, full: tokens/s, ours over trl" not in verdicts(**{"fast/1b-full/trl/1": {"losses": [9.0]}})


def test_a_side_of_two_turns_is_one_row() -> None:
    ours = next(row for row in judge.rows(parts()) if row["side"] == "ours")
    assert (ours["turns"], ours["peak"]) == (2, 9 * GIB)
    assert ours["speed"] == pytest.approx((20_000 / 0.4 + 20_000 / 0.42) / 2)


def test_of_nothing_there_is_nothing_to_say() -> None:
    assert judge.judge({}) == []


def results(**changed: Any) -> dict[str, Any]:
    found = parts(**changed)
    checks = [vars(check) for check in judge.judge(found)]
    host = {"python": "3.12.3", "cores": 16}
    return {
        "date": "2026-12-01", "command": "python tests/gpu/run.py --out results", "rehearsal": False, "seconds": 400.0,
        "host": host, "parts": found, "verdicts": checks,
    }  # fmt: skip


def test_the_section_names_card_driver_date_command_and_every_missed_target() -> None:
    said = table.section(results(**{"fast/1b-full/trl/1": {"seconds": 0.41}, "fits/1b-full": {"reserved": 30 * GIB}}))
    for words in (
        "## On a GPU",
        "NVIDIA H200, driver 580.1",
        "2026-12-01",
        "`python tests/gpu/run.py --out results`",
        "| 1B, full | ours | 48,810",
        "| 1B, full | 4,096 | 21.0 | 30.0 | 19.0 | 0.70 |",
        "`gemm/a`",
    ):
        assert words in said
    missed = [line for line in said.splitlines() if "**missed**" in line]
    assert [line.partition(":")[0] for line in missed] == ["- plan of 1B, full", "- 1B, full"]


def test_what_failed_and_what_was_not_run_is_in_the_section() -> None:
    made = results()
    made["parts"]["right/zero-2"] = {
        "state": "done", "facts": {}, "seconds": 1.0,
        "checks": [vars(Check("right/zero-2", "skipped", words="not installed: deepspeed"))],
    }  # fmt: skip
    made["parts"]["right/numbers"]["checks"] = [vars(Check("right/numbers", "failed", words="CUDA error"))]
    said = table.section(made)
    assert "- not run: right/zero-2 (not installed: deepspeed)" in said
    assert "- **failed**: right/numbers (CUDA error)" in said


def test_without_a_run_the_section_says_so_and_the_document_has_that_or_a_real_one() -> None:
    assert "Not measured: no run on a GPU has been made yet." in table.section(None)
    document = (ROOT / "docs" / "benchmarks.md").read_text()
    now = document.partition(table.BEGIN)[2].partition(table.END)[0].strip()
    assert now.startswith(table.TITLE)
    assert now == table.section(None) or "driver" in now


def test_the_table_replaces_what_is_between_its_marks_alone(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results()))
    assert table.main([str(file), "--document", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{table.BEGIN}\n## On a GPU")
    assert text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text


def test_a_rehearsal_does_not_go_into_the_document(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({**results(), "rehearsal": True}))
    document = tmp_path / "doc.md"
    document.write_text(f"{table.BEGIN}\n{table.END}")
    assert table.main([str(file), "--document", str(document)]) == 64
    assert document.read_text() == f"{table.BEGIN}\n{table.END}"


def test_where_the_time_of_a_step_goes() -> None:
    events = [
        Event("gemm", 0, 600, on_gpu=True),
        Event("add", 600, 700, on_gpu=True),
        Event("gemm", 900, 1200, on_gpu=True),
        *[Event("cudaStreamSynchronize", n, n + 1, on_gpu=False) for n in range(6)],
        Event("cudaLaunchKernel", 5, 9, on_gpu=False),
    ]
    found = account(events, steps=2)
    assert [(k["name"], k["calls"]) for k in found["kernels"]] == [("gemm", 2), ("add", 1)]
    assert found["kernels"][0]["share"] == pytest.approx(0.9)
    assert found["idle_share"] == pytest.approx(200 / 1200)
    assert found["gaps"] == [{"microseconds": 0.2, "after": "add", "before": "gemm"}]
    assert found["syncs_a_step"] == 2  # two of the six are the kit's own
    assert account([], steps=2) == {"kernels": [], "syncs_a_step": 0}


def test_notes_are_whole_after_every_line(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json")
    notes.fact("device", "NVIDIA H200")
    notes.check(Check("it is right", "passed", 0.5, 1.0))
    found = json.loads((tmp_path / "notes.json").read_text())
    assert found["facts"] == {"device": "NVIDIA H200"}
    assert [Check(**check) for check in found["checks"]] == [Check("it is right", "passed", 0.5, 1.0)]


@pytest.mark.parametrize("sizes", [CARD, REHEARSAL])
def test_every_part_exists_and_has_a_name_of_its_own(sizes: Any) -> None:
    import importlib

    every = parts_of(sizes)
    assert len({part.name for part in every}) == len(every)
    for part in every:
        module, _, function = part.function.partition(":")
        assert callable(getattr(importlib.import_module(f"tests.gpu.{module}"), function))
        assert part.expected < part.limit


def test_what_has_to_be_right_comes_first_and_one_round_of_all_fits_into_the_budget() -> None:
    every = parts_of(CARD)
    assert every[: len(RIGHT)] == RIGHT
    first = [part for part in every if not part.name.endswith("/2")]
    lanes = sum(part.expected for part in first if part.lane == "right") / 4
    alone = sum(part.expected for part in first if part.lane != "right")
    assert lanes + alone <= 480


def test_parts_that_are_timed_are_alone_on_a_card() -> None:
    groups = list(together(parts_of(CARD), timed=True))
    assert all(len(group) == 1 for group in groups if group[0].stage in ("fits", "fast", "time"))
    assert max(len(group) for group in groups) > 1
    assert len(list(together((Part("a/b", "m:f", 1, 2), Part("a/c", "m:f", 1, 2)), timed=False))) == 1


PINS = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "tests/gpu/kit.txt").read_text(), re.MULTILINE))


def test_the_kit_has_the_versions_that_everything_else_is_tested_with() -> None:
    lock = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    rivals = (ROOT / "tests/benchmarks/trainer/rivals/trl.txt").read_text()
    known = {**dict(re.findall(r"^([\w-]+)==([\w.]+)", rivals, re.MULTILINE)), **lock}
    known |= dict(re.findall(r"(deepspeed|hjson)==([\w.]+)", (ROOT / "tools/deepspeed.sh").read_text()))
    assert {name: known[name] for name in PINS if name in known} == {n: v for n, v in PINS.items() if n in known}
    assert set(PINS) - set(known) == {"liger-kernel"}  # an extra that the lock leaves out


def test_the_kit_has_what_the_trainer_wants_and_the_machine_has_not() -> None:
    there = (ROOT / "tests/gpu/machine.txt").read_text().split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["trainer"]]
    wanted = {re.split(r"[<>=!]", requirement)[0] for requirement in asked}
    wanted -= {"jsonschema", "referencing"}  # imported for evaluation.generate.schema, which no stage asks for
    assert wanted - set(PINS) - set(there) == set()


def test_a_slim_wheel_has_the_wanted_libraries_alone_and_says_so_in_its_record(tmp_path: Path) -> None:
    wheel = tmp_path / "b-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        for name in ("b/__init__.py", "b/lib_130.so", "b/lib_118.so"):
            made.writestr(name, "x" * 100)
        made.writestr("b-1.dist-info/RECORD", "b/__init__.py,,\nb/lib_130.so,,\nb/lib_118.so,,\n")
    slim(wheel, {"lib_130.so"})
    with zipfile.ZipFile(wheel) as made:
        assert made.namelist() == ["b/__init__.py", "b/lib_130.so", "b-1.dist-info/RECORD"]
        assert made.read("b-1.dist-info/RECORD").decode() == "b/__init__.py,,\nb/lib_130.so,,\n"
    with pytest.raises(SystemExit, match=r"has no lib_999.so"):
        slim(wheel, {"lib_999.so"})


def conducted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], **changed: Any
) -> dict[str, Any]:
    """Parts that are these programs, in order. One that hangs has three seconds."""
    budget = changed.get("budget", 600.0)
    queue = [[sys.executable, "-c", program] for program in programs.values()]
    monkeypatch.setattr(conduct, "interpreter", lambda: queue.pop(0))
    session = conduct.Session(folder, folder / "scratch", budget=budget, rehearsal=False, doubles=True)
    for name in programs:
        session.run((Part(name, "m:f", 1, 3 if name == "right/hangs" else 300),))
    session.finish()
    parts: dict[str, Any] = json.loads((folder / "results.json").read_text())["parts"]
    return parts


FINE = """
import json, sys
file = sys.argv[sys.argv.index("--notes") + 1]
open(file, "w").write(json.dumps({"checks": [{"name": "it is right", "verdict": "passed"}], "facts": {"answer": 42}}))
"""


def test_no_part_takes_another_one_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = FINE + "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)"
    dies = "import os, sys\nsys.stderr.write('CUDA error: an illegal memory access')\nsys.stderr.flush()\nos.abort()"
    found = conducted(tmp_path, monkeypatch, {"right/hangs": hangs, "right/dies": dies, "right/fine": FINE})

    assert found["right/hangs"]["state"] == "it took more than 3 s"
    assert found["right/hangs"]["facts"] == {"answer": 42}
    assert [check["verdict"] for check in found["right/hangs"]["checks"]] == ["passed", "failed"]
    assert found["right/dies"]["state"] == "it ended with status -6"
    assert "an illegal memory access" in found["right/dies"]["log"]
    assert found["right/fine"]["state"] == "done"
    assert (tmp_path / "on-a-gpu.md").read_text().startswith("## On a GPU")


def test_what_does_not_fit_into_the_budget_is_skipped_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = conducted(tmp_path, monkeypatch, {"right/late": FINE}, budget=4.1)
    (check,) = found["right/late"]["checks"]
    assert check["verdict"] == "skipped"
    assert check["words"].endswith("s of the budget are left")


def test_a_part_computes_as_torch_is_delivered_and_asks_for_no_network(tmp_path: Path) -> None:
    """Whatever the machine's environment says."""
    theirs = {"NVIDIA_TF32_OVERRIDE": "1", "RANK": "3", "HOME": "/nowhere", "PYTHONPATH": "/wheels", DEEPSPEED: "/ds"}
    part = Part("right/x", "m:f", 1, 2, beside=(DEEPSPEED,), cpu=True)
    made = environment(tmp_path, theirs, part=part, root=Path("/tree"), rehearsal=False)
    assert not {"NVIDIA_TF32_OVERRIDE", "RANK"} & made.keys()
    assert made["PYTHONPATH"] == "/tree/crds:/tree/trainer:/wheels:/ds"
    assert made["NCCL_SOCKET_IFNAME"] == made["GLOO_SOCKET_IFNAME"] == "lo"
    assert made["HF_HUB_OFFLINE"] == "1"
    assert made["CUDA_VISIBLE_DEVICES"] == ""
    assert Path(made["HOME"]).is_dir()
    assert made["HOME"].startswith(str(tmp_path))
