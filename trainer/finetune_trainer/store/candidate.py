"""Artifacts that a guard kept back: whole, with a manifest of their own, but below `.finetune/` of the output folder.

    .finetune/<uid>/candidate/          what would have been the artifact
    .finetune/<uid>/remedies/<settings>/.finetune/<its uid>/candidate/     with guards.maxAttempts: of a run after it

Publishing one copies its files into the output folder, checks them, and commits them like any artifact. The only
difference is the manifest's `promotion`, if a person decided it.
"""

from __future__ import annotations

import re
import tempfile
from contextlib import suppress
from pathlib import Path

from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import JobIdentity
from finetune_api.status import Artifact

from .artifact import check_output, commit_artifact, read_manifest
from .fetch import at_once
from .folder import Folder, NotFound
from .manifest import MANIFEST, Manifest, Promotion

_PLACE = re.compile(
    r"^(?P<output>.+?)(/\.finetune/(?P<first>[^/]+)/remedies/[^/]+)?/\.finetune/(?P<uid>[^/]+)/candidate/?$"
)


def uri_of(output: str, uid: str) -> str:
    """The candidate's folder of a run."""
    return f"{output.rstrip('/')}/.finetune/{uid}/candidate"


def output_of(candidate: str) -> str:
    """The folder that a candidate would be published in. InvalidSpec if the URI is not one of a candidate."""
    found = _PLACE.match(candidate)
    if found is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"{candidate} is not the folder of a candidate",
            "Give a job's name, or the URI in status.candidate.uri: <output.uri>/.finetune/<uid>/candidate.",
        )
    return found["output"]


def job_uid_of(candidate: str) -> str | None:
    """UID of the job that a candidate is of, which one of several runs may have left; None for another folder."""
    found = _PLACE.match(candidate)
    return None if found is None else found["first"] or found["uid"]


def publish(
    candidate: Folder,
    output: Folder,
    *,
    overwrite: bool,
    promotion: Promotion | None = None,
    run: JobIdentity | None = None,
) -> Artifact:
    """The candidate becomes the artifact of the output folder. run: whose it is. Default: as its manifest says.
    NotFound where there is none, OutputExists for another run's artifact, or another one of this job; DataUnreadable
    for a candidate that is damaged."""
    manifest = read_manifest(candidate)
    if not overwrite:
        check_output(output, run or manifest.run, overwrite=False)
        _check_same(output, manifest)
    with tempfile.TemporaryDirectory(prefix="finetune-candidate-") as temporary:
        files = {name: Path(temporary) / name for name in manifest.files}

        def fetch(name: str) -> None:
            if candidate.download(name, files[name]) != manifest.files[name].digest:
                raise FinetuneError(
                    Reason.DataUnreadable, f"{candidate.uri}/{name} is not what was kept", "Train again."
                )

        at_once(fetch, sorted(files))
        artifact = commit_artifact(
            output,
            files,
            run=run or manifest.run,
            kind=manifest.kind,
            overwrite=overwrite,
            servable=manifest.servable,
            temperature=manifest.temperature,
            promotion=promotion,
            ladder=manifest.ladder,
            switch_test=manifest.switch_test,
            continual=manifest.continual,
            trained_on=manifest.trained_on,
        )
    candidate.delete(MANIFEST)
    for name in manifest.files:
        candidate.delete(name)
    return artifact


def _check_same(output: Folder, candidate: Manifest) -> None:
    """OutputExists for another artifact of this job, which is nowhere else. One with the same files is this candidate,
    whose publication was interrupted."""
    with suppress(NotFound):
        if read_manifest(output).files != candidate.files:
            raise FinetuneError(
                Reason.OutputExists,
                f"{output.uri} holds the artifact of another run of this job",
                "To replace it: finetune promote --overwrite.",
            )
