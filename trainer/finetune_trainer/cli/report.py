"""`finetune report NAME_OR_URI`: prints the path of the HTML report, after downloading it from an object store. With
--text it prints what was measured, by all metrics."""

from __future__ import annotations

import re
import shutil
import webbrowser
from pathlib import Path

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_trainer.cli.jobs import Where, find

REPORT_FILE = "report.html"


def show_report(target: str, *, where: Where, save: Path | None, open_it: bool, text: bool = False) -> int:
    uri = target if "://" in target else artifact_uri(target, where)
    if text:
        print(_text(uri))
        return ExitCode.OK
    path = _local_path(uri, save=save)
    print(path)
    if open_it:
        webbrowser.open(path.absolute().as_uri())
    return ExitCode.OK


def artifact_uri(name: str, where: Where) -> str:
    """Of a job by its name. NotFound while it has none."""
    job, _ = find(name, where)
    if job.status.artifact is None:
        yet = "" if job.status.phase is not None and job.status.phase.terminal else " yet"
        message = f"{name} has no artifact{yet} (phase {job.status.phase or 'Pending'})"
        raise FinetuneError(Reason.NotFound, message, f"See `finetune status {name}`.")
    return job.status.artifact.uri


def _text(uri: str) -> str:
    """Verdict, all metrics of all data sets, and what their rows could not have shown."""
    from finetune_trainer.cli.text import aligned, evaluation_table, guard_lines
    from finetune_trainer.report.compare import sentences, unseen
    from finetune_trainer.report.judged import rows_of
    from finetune_trainer.report.record import RECORD_FILE, read_record
    from finetune_trainer.store.folder import NotFound
    from finetune_trainer.store.opening import open_folder

    try:
        record = read_record(open_folder(uri, prefix=names.PREFIX_OUTPUT))
    except NotFound:
        raise NotFound(f"there is no {RECORD_FILE} at {uri}", "Check the URI: the folder of a finished run.") from None
    rows = rows_of(record)
    parts = [
        "\n".join(sentences(rows)) or "Nothing was measured.",
        evaluation_table(rows, record.evaluation.generation),
    ]
    if guards := guard_lines(record.evaluation):
        parts.append(guards)
    if missed := aligned(unseen(rows)):
        parts.append(f"What could not be seen\n{missed}")
    return "\n\n".join(part for part in parts if part)


def _local_path(uri: str, *, save: Path | None) -> Path:
    """Returns the report in a local artifact folder, otherwise downloads it to the current folder."""
    from finetune_trainer.store.folder import NotFound
    from finetune_trainer.store.opening import open_folder

    folder = open_folder(uri, prefix=names.PREFIX_OUTPUT)
    if not folder.exists(REPORT_FILE):
        raise NotFound(
            f"{REPORT_FILE} not found at {uri}", "Check the URI. It must be the output folder of a finished run."
        )
    if uri.startswith("file://"):
        path = Path(uri.removeprefix("file://")) / REPORT_FILE
        return path if save is None else Path(shutil.copyfile(path, save))
    name = re.sub(r"[^\w.-]+", "-", uri.rstrip("/").rsplit("/", 1)[-1])
    path = save or Path(f"{name}-{REPORT_FILE}")
    folder.download(REPORT_FILE, path)
    return path
