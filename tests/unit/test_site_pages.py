"""What the pages for newcomers show is what the commands print: manifests, conversions, plans and code are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from finetune_api.failures import CLASSES
from finetune_trainer.cli.main import main
from tests.cluster.rig.build import KUBERNETES
from tests.support import task_pages
from tests.support.documents import ROOT, commands, manifests

TASKS = task_pages.pages()
CONVERSION = re.compile(
    r'``` yaml title="(?P<theirs>\S+)"\n(?P<config>.*?)```\n\n```sh\n(?P<command>finetune init .*?)\n```\n\n'
    r"```text\n(?P<ignored>.*?)```\n\n```yaml\n(?P<ours>.*?)```",
    re.S,
)
CONVERSIONS = [
    pytest.param(found, id=f"{page.stem}-{found['theirs']}")
    for page in sorted((ROOT / "docs" / "start").glob("*.md"))
    for found in CONVERSION.finditer(page.read_text())
]


@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.stem)
def test_a_task_has_a_complete_manifest_that_validates(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = manifests(page)

    assert found
    for text in found:
        (tmp_path / "job.yaml").write_text(text)
        assert main(["validate", str(tmp_path / "job.yaml")]) == 0
        assert capsys.readouterr().err == ""  # no warning, and nothing that only this machine can do
    assert f"({page.name})" in (ROOT / "docs" / "tasks" / "index.md").read_text()


@pytest.mark.parametrize("page", [page for page in TASKS if page.stem != "large-model"], ids=lambda page: page.stem)
def test_a_task_shows_what_was_printed_for_the_manifest_that_it_shows(page: Path) -> None:
    """That of large-model is printed again, below."""
    found = task_pages.block_of(page)

    assert found is not None
    assert found["name"] == page.stem
    assert found["digest"] == task_pages.digest(page, found["text"]), f"run: python -m tests.proof.tasks {page.stem}"
    assert re.search(r"```sh\n.+\n```\n\n```text\n.+\n```\n\n.+", found["text"], re.S)


@pytest.mark.parametrize(
    ("before", "after"), [("name: support-bot", "name: bot"), ("rank: 16", "rank: 8"), ("  artifact  ", "  artefact  ")]
)
def test_a_page_that_changed_without_a_run_is_found(before: str, after: str, tmp_path: Path) -> None:
    page = tmp_path / "support-bot.md"
    content = (task_pages.PAGES / page.name).read_text()
    assert before in content
    page.write_text(content.replace(before, after))
    found = task_pages.block_of(page)

    assert found is not None
    assert found["digest"] != task_pages.digest(page, found["text"])


def test_there_is_a_conversion_of_each_kind() -> None:
    assert len(CONVERSIONS) == 5


@pytest.mark.parametrize("found", CONVERSIONS)
def test_a_conversion_is_what_the_command_writes(
    found: re.Match[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(found["theirs"]).write_text(found["config"])

    assert main(shlex.split(found["command"])[1:]) == 0
    assert Path("job.yaml").read_text() == found["ours"]
    assert capsys.readouterr().err == found["ignored"]


def test_what_init_writes_without_flags_is_on_the_page(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "job.yaml")]) == 0
    assert f"```text\n{(tmp_path / 'job.yaml').read_text()}```" in (ROOT / "docs/start/laptop.md").read_text()


def test_the_plan_of_the_large_model_is_the_printed_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    page = ROOT / "docs" / "tasks" / "large-model.md"
    (command,) = commands(page)
    shown = page.read_text().partition("```text\n")[2].partition("```")[0]

    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == shown
    assert f"```yaml\n{(ROOT / 'examples/70b-on-two-gpus.yaml').read_text()}```" in page.read_text()


def test_the_code_that_converts_csv_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    Path("tickets.csv").write_text('body,queue,id\n"I was charged twice, in March",billing,1\n')
    code = (ROOT / "docs/tasks/your-data.md").read_text().partition("```python\n")[2].partition("```")[0]

    exec(compile(code, "your-data.md", "exec"), {})
    rows = parquet.read_table("tickets.parquet").to_pylist()
    assert rows == [{"text": "I was charged twice, in March", "label": "billing"}]


def test_the_example_of_tickets_is_what_the_pages_say() -> None:
    rows = {name: (ROOT / f"examples/tickets/{name}.jsonl").read_text().splitlines() for name in ("train", "test")}

    assert {name: len(lines) for name, lines in rows.items()} == {"train": 60, "test": 24}
    assert not set(rows["train"]) & set(rows["test"])
    assert main(["validate", str(ROOT / "examples/tickets/job.yaml")]) == 0


def test_each_reason_leads_to_its_section_in_two_clicks() -> None:
    page = (ROOT / "docs" / "reasons.md").read_text()
    linked = dict(re.findall(r"^\| `(\w+)` \| \[(\w+)\]\(runbooks\.md#\w+\)", page, re.MULTILINE))

    assert linked == {reason: name for name, traits in CLASSES.items() for reason in traits.causes}
    assert "(reasons.md)" in (ROOT / "docs" / "index.md").read_text()


def test_what_the_comparison_shows_was_measured() -> None:
    """Each figure stands in docs/benchmarks.md, which names the command and the conditions."""
    measured = (ROOT / "docs" / "benchmarks.md").read_text()
    _, speed, burst, _ = (ROOT / "docs" / "comparison.md").read_text().split("\n## ")
    figures = re.findall(r"\b\d+\.\d+\b", re.sub(r"\([^)]*\)| \d+\.\d+\.\d+", "", speed.partition("| | other")[2]))
    figures += [
        word for row in burst.splitlines() if row.startswith("| ") for word in re.findall(r"[\d.]+ (?=s|ms|MiB)", row)
    ]

    assert len(figures) > 20
    assert [
        figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure.strip())}(?![\d.])", measured)
    ] == []


def test_each_decision_has_a_date_alternatives_and_what_would_change_it() -> None:
    pages = [page for page in (ROOT / "docs" / "decisions").glob("*.md") if page.name != "index.md"]
    index = (ROOT / "docs" / "decisions" / "index.md").read_text()

    for page in pages:
        parts = re.findall(r"\*\*(Date|Decision|Alternatives|Consequences|What would change it)\b", page.read_text())
        assert parts == ["Date", "Decision", "Alternatives", "Consequences", "What would change it"], page.name
        (date,) = re.findall(r"^\*\*Date\*\*: (\d{4}-\d\d-\d\d)", page.read_text(), re.MULTILINE)
        assert f"| {date} | [" in index
        assert f"]({page.name})" in index


def test_the_versions_that_the_page_calls_tested_are_those_of_the_lock_file() -> None:
    page = (ROOT / "docs" / "versions.md").read_text()
    lock = (ROOT / "requirements.lock").read_text()

    for package in ("torch", "transformers", "peft"):
        (tested,) = re.findall(rf"^\| {package} \| [^|]+ \| (\S+) \|", page, re.MULTILINE)
        assert f"\n{package}=={tested} " in lock
    assert f"| {KUBERNETES.removeprefix('v')}, etcd" in page
