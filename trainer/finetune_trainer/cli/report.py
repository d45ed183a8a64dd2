"""`finetune report NAME_OR_URI`: prints where the HTML report is; fetches it from an object store if it is there."""

from __future__ import annotations

import re
import shutil
import webbrowser
from pathlib import Path

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_trainer.cli.jobs import Where, find

REPORT_FILE = "report.html"


def show_report(target: str, *, where: Where, save: Path | None, open_it: bool) -> int:
    uri = target if "://" in target else _artifact_uri(target, where)
    path = _local_path(uri, save=save)
    print(path)
    if open_it:
        webbrowser.open(path.absolute().as_uri())
    return ExitCode.OK


def _artifact_uri(name: str, where: Where) -> str:
    job, _ = find(name, where)
    if job.status.artifact is None:
        yet = "" if job.status.phase is not None and job.status.phase.terminal else " yet"
        message = f"{name} has no artifact{yet} (phase {job.status.phase or 'Pending'})"
        raise FinetuneError(Reason.NotFound, message, f"See `finetune status {name}`.")
    return job.status.artifact.uri


def _local_path(uri: str, *, save: Path | None) -> Path:
    """In place where the artifact is a local folder, else a copy in the current folder."""
    from finetune_trainer.store.folder import NotFound, open_folder

    folder = open_folder(uri, prefix=names.PREFIX_OUTPUT)
    if not folder.exists(REPORT_FILE):
        raise NotFound(f"there is no {REPORT_FILE} at {uri}", "Check the URI: the folder of a finished run.")
    if uri.startswith("file://"):
        path = Path(uri.removeprefix("file://")) / REPORT_FILE
        return path if save is None else Path(shutil.copyfile(path, save))
    name = re.sub(r"[^\w.-]+", "-", uri.rstrip("/").rsplit("/", 1)[-1])
    path = save or Path(f"{name}-{REPORT_FILE}")
    folder.download(REPORT_FILE, path)
    return path
