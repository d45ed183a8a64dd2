"""The documents are true: links lead somewhere, manifests are valid, and every command is run by a test."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from finetune_api import manifest, reason_page, reference, series
from finetune_api.failures import WAITED_FOR, Reason
from finetune_api.methods import TRAITS
from finetune_api.status import FailureClass
from finetune_trainer.cli.main import main
from tests.support.documents import DOCUMENTS, ROOT, commands, manifests
from tools import cli_page

RUN_BY = {
    r"make demo": "tests/e2e/test_demo.py",
    r"make test": ".ci/run",
    r"cd examples/tickets": "tests/unit/test_site_pages.py",
    r"finetune data inspect job\.yaml.*": "tests/unit/test_cli_data.py",
    r"finetune init( .*)?": "tests/unit/test_site_pages.py",
    r"finetune plan examples/70b-on-two-gpus\.yaml .*": "tests/unit/test_site_pages.py",
    r"finetune validate job\.yaml": "tests/unit/test_site_pages.py",
    r"finetune report \w+": "tests/unit/test_cli_commands.py",
    r"kubectl apply -f job\.yaml": "tests/cluster/test_end_to_end.py",
    r"make docs": "tests/unit/test_site.py",
    r"make proof": "tests/unit/test_models_table.py",
    r"finetune validate examples/\S+": "tests/unit/test_docs.py",
    r"finetune plan job\.yaml --gpu H100": "tests/unit/test_cli_plan.py",
    r"finetune analyze job\.yaml.*": "tests/unit/test_cli_analyze.py",
    r"finetune run job\.yaml": "tests/e2e/test_local_run.py",
    r"finetune compare s3://.*": "tests/unit/test_cli_compare.py",
    r"finetune verify s3://\S+": "tests/cluster/test_end_to_end.py",
    r"kubectl apply --server-side( -n finetune-operator)? -f (crds|operator)/\S+": "tests/integration/test_install.py",
    r"helm (install|upgrade|uninstall) finetune-operator .*": "tests/integration/test_chart_installs.py",
    r"kubectl delete -f (crds|operator)/\S+": "tests/integration/test_install.py",
    r"kubectl create configmap own-script --from-file=examples/train\.py": "tests/cluster/test_script.py",
    r"kubectl apply -f examples/bring-your-own-script\.yaml": "tests/cluster/test_script.py",
    r"kubectl apply -f examples/sentiment-lora\.yaml": "tests/cluster/test_end_to_end.py",
    r"kubectl wait --for=condition=Complete finetunejob/\S+ --timeout=\w+": "tests/cluster/test_end_to_end.py",
    r"kubectl get finetunejobs": "tests/proof/task_queue.py",
    r"kubectl finetune status \w+": "tests/cluster/test_end_to_end.py",
    r"python tests/gpu/run\.py .*": "tests/e2e/test_gpu_rehearsal.py",
    r"python (-m tests\.benchmarks\.|tests/benchmarks/)\S+( .*)?": "tests/benchmarks/__main__.py",
}
"""What the documents may tell people to type, and the file that types it."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_run_somewhere(document: Path) -> None:
    for command in commands(document):
        runners = [file for pattern, file in RUN_BY.items() if re.fullmatch(pattern, command)]
        assert runners, f"{document.name} says to type {command!r}, and no test does"
        assert (ROOT / runners[0]).exists()


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md"], ids=lambda path: path.name
)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} → {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_manifest_is_valid(document: Path) -> None:
    for text in manifests(document):
        assert manifest.validate(manifest.parse(text)) == ()


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(example)]) == 0, capsys.readouterr().err


ROOMS = sorted(
    init.parent
    for package in ("crds/finetune_api", "operator/finetune_operator", "trainer/finetune_trainer")
    for init in (ROOT / package).rglob("__init__.py")
)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_the_map_of_a_room_names_each_of_its_files(room: Path) -> None:
    text = (room / "__init__.py").read_text()
    told = set(re.findall(r"\w+", text)) | (set(TRAITS) if "One file for each method, with its name" in text else set())
    files = {file.stem for file in room.glob("*.py")} - {"__init__", "__main__"}

    assert files - told == set()


def test_every_test_that_a_document_names_exists() -> None:
    named = {
        name for document in DOCUMENTS for name in re.findall(r"`(tests/\S+?\.py::test_\w+)`", document.read_text())
    }
    assert len(named) > 20
    for name in named:
        file, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), name


def test_the_manifest_reference_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "manifest.md").read_text() == reference.markdown(), "run: make generate"


def test_the_page_of_metrics_and_the_heads_of_runbooks_are_the_generated_ones() -> None:
    runbooks = (ROOT / "docs" / "runbooks.md").read_text()

    assert (ROOT / "docs" / "metrics.md").read_text() == reference.metrics(), "run: make generate"
    assert runbooks == reference.with_heads(runbooks), "run: make generate"
    assert (ROOT / "docs" / "reasons.md").read_text() == reason_page.page(), "run: make generate"


def test_the_page_of_commands_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == cli_page.page(), "run: make generate"


def test_the_loop_explains_training_in_under_300_lines() -> None:
    assert len((ROOT / "trainer/finetune_trainer/train/loop.py").read_text().splitlines()) < 300


def test_every_class_of_failure_has_a_runbook() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text()

    for name in [*FailureClass, Reason.RestartsExhausted]:
        assert f"## {name}\n" in text


def test_every_reason_has_a_word_in_the_runbooks() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text()

    assert [reason for reason in Reason if f"`{reason}`" not in text] == []


def test_each_failure_mode_says_what_happens_what_is_seen_and_how_long_it_lasts() -> None:
    _, *kinds = (ROOT / "docs" / "failure-modes.md").read_text().split("\n## ")
    parts = ["What happens", "What you see", "How long it lasts"]

    assert len(kinds) >= 5
    for kind in kinds:
        assert re.findall(r"^- \*\*(.+?)\*\*: ", kind, re.MULTILINE) == parts, kind.splitlines()[0]


def test_code_table_and_runbook_agree_on_what_is_waited_for() -> None:
    runbook = (ROOT / "docs" / "runbooks.md").read_text()
    waiting = runbook.partition("While an attempt waits to start")[2].partition("And while it runs")[0]
    table = (ROOT / "docs" / "manifest.md").read_text()

    assert set(re.findall(r"^- `(\w+)`", waiting, re.MULTILINE)) == {reason.value for reason in WAITED_FOR}
    assert set(re.findall(r"^\| (\w+) \| Infrastructure \| 69 \| waits until", table, re.MULTILINE)) == {*WAITED_FOR}


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    metrics = [each.name for each in series.SERIES]

    assert metrics
    assert [name for name in metrics if f"`{name}`" not in text] == []


def test_nothing_names_a_machine_or_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    forbidden = re.compile(
        r"py[p]i\.org|python[h]osted|proxy\.go[l]ang|sum\.go[l]ang|registry\.np[m]js|deb\.de[b]ian|/roo[t]/"
    )
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if file.is_file():
            assert not forbidden.search(file.read_text(errors="replace")), name
