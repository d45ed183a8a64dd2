"""`finetune verify ARTIFACT`: checks every file of an artifact against the digests in the artifact manifest."""

from __future__ import annotations

import json
import sys

from finetune_api import names
from finetune_api.failures import ExitCode
from finetune_trainer.cli.jobs import Where


def verify_artifact(target: str, *, where: Where, as_json: bool) -> int:
    """`target`: URI, folder or name of a job."""
    from finetune_trainer.cli.checked import Verified
    from finetune_trainer.cli.compare import uri_of
    from finetune_trainer.store.artifact import verify
    from finetune_trainer.store.opening import open_folder

    uri = uri_of(target, where)
    report = verify(open_folder(uri, prefix=names.PREFIX_OUTPUT))
    manifest, intact = report.manifest, not report.problems and report.manifest is not None
    if as_json:
        found = Verified(uri=uri, intact=intact, problems=tuple(map(str, report.problems)))
        if manifest is not None:
            found = Verified(
                uri=uri, intact=intact, problems=found.problems, files=len(manifest.files),
                size_bytes=manifest.size_bytes, kind=manifest.kind, digest=manifest.digest,
            )  # fmt: skip
        print(json.dumps(found.to_json(), indent=2))
        return ExitCode.OK if intact else ExitCode.DATA
    for problem in report.problems:
        print(f"{uri}: {problem}", file=sys.stderr)
    if not intact or manifest is None:
        return ExitCode.DATA
    print(
        f"{uri}: intact ({len(manifest.files)} files, {manifest.size_bytes} bytes, {manifest.kind}, {manifest.digest})"
    )
    return ExitCode.OK
