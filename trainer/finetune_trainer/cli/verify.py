"""`finetune verify URI`: checks every file of an artifact against the digests in the artifact manifest."""

from __future__ import annotations

import sys

from finetune_api import names
from finetune_api.failures import ExitCode


def verify_uri(uri: str) -> int:
    from finetune_trainer.store.artifact import verify
    from finetune_trainer.store.opening import open_folder

    report = verify(open_folder(uri, prefix=names.PREFIX_OUTPUT))
    for problem in report.problems:
        print(f"{uri}: {problem}", file=sys.stderr)
    if report.problems or report.manifest is None:
        return ExitCode.DATA
    manifest = report.manifest
    print(
        f"{uri}: intact ({len(manifest.files)} files, {manifest.size_bytes} bytes, {manifest.kind}, {manifest.digest})"
    )
    return ExitCode.OK
