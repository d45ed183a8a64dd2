"""`finetune promote NAME_OR_URI`: publishes an artifact that a guard kept back, and says so in its manifest."""

from __future__ import annotations

import json

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_trainer.cli.jobs import Where, find


def promote(target: str, *, where: Where, overwrite: bool, as_json: bool) -> int:
    """`target`: a job, or the candidate's folder. The keys of its store come from the environment."""
    from finetune_trainer.cli.checked import Published
    from finetune_trainer.report.record import read_record
    from finetune_trainer.rundir import now
    from finetune_trainer.store import candidate
    from finetune_trainer.store.folder import NotFound
    from finetune_trainer.store.manifest import Promotion
    from finetune_trainer.store.opening import open_folder

    uri = target if "://" in target else _candidate_uri(target, where)
    output = open_folder(candidate.output_of(uri), prefix=names.PREFIX_OUTPUT)
    folder = open_folder(uri, prefix=names.PREFIX_OUTPUT)
    try:
        record = read_record(folder)
    except NotFound:
        hint = "It may have been published already: finetune verify " + output.uri
        raise FinetuneError(Reason.NotFound, f"there is no candidate at {uri}", hint) from None
    promotion = Promotion(time=now(), candidate=uri, refused=record.refused)
    run = record.job.model_copy(update={"uid": candidate.job_uid_of(uri)})
    artifact = candidate.publish(folder, output, overwrite=overwrite, promotion=promotion, run=run)
    if as_json:
        done = Published(uri=artifact.uri, digest=artifact.digest, refused=record.refused)
        print(json.dumps(done.to_json(), indent=2))
        return ExitCode.OK
    print(f"published {artifact.uri} ({artifact.digest[:19]}), kept back before: {record.refused}")
    return ExitCode.OK


def _candidate_uri(name: str, where: Where) -> str:
    job, _ = find(name, where)
    if job.status.candidate is None:
        message = f"{name} has no candidate: no guard kept its artifact back"
        raise FinetuneError(Reason.NotFound, message, f"See `finetune status {name}`.")
    return job.status.candidate.uri
