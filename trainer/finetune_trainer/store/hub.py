"""The model hub: how it is reached, the files of a data set there, and what its refusals mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from finetune_api.failures import FinetuneError, Reason

from .ranges import Ranges
from .retries import retrying

PATIENCE = 120.0
"""Seconds that a hub or a bucket may be away while rows are read."""

_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def is_pattern(text: str) -> bool:
    """Whether it stands for all names that match."""
    return "*" in text or "?" in text


@dataclass(frozen=True)
class Hub:
    token: str
    endpoint: str | None
    """None: the public one."""

    @classmethod
    def of(cls, environ: Mapping[str, str], *, prefix: str) -> Hub:
        """The section's own HF_TOKEN and HF_ENDPOINT, else those of the environment."""
        token = environ.get(prefix + "HF_TOKEN") or environ.get("HF_TOKEN") or ""
        return cls(token, environ.get(prefix + "HF_ENDPOINT") or environ.get("HF_ENDPOINT") or None)


@dataclass(frozen=True)
class HubDataset:
    """`hf://datasets/org/name@revision/path`; revision and path may be left out."""

    repository: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, path: str) -> HubDataset:
        """The part after `hf://datasets/`. A revision with a slash is written with %2F."""
        org, name, *rest = path.split("/", 2)
        name, _, revision = name.partition("@")
        return cls(f"{org}/{name}", unquote(revision) or None, rest[0] if rest else "")

    def uri(self, path: str = "") -> str:
        """Of a file in it, at this revision."""
        at = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return f"hf://datasets/{self.repository}{at}" + (f"/{path}" if path else "")

    def pinned(self, hub: Hub) -> tuple[HubDataset, list[str]]:
        """The data set at the commit that its revision means now, and the names of its files. DataNotFound,
        CredentialsMissing, CredentialsRejected, StorageUnavailable."""
        of_one_file = self.path and not self.path.endswith("/") and not is_pattern(self.path)
        if self.revision and _COMMIT.match(self.revision) and of_one_file:
            return self, [self.path]  # a commit does not change: nothing to ask
        from huggingface_hub import HfApi

        try:
            api = HfApi(endpoint=hub.endpoint, token=hub.token or False)
            info = api.dataset_info(self.repository, revision=self.revision, timeout=30)
        except Exception as error:
            raise self._explain(error, hub) from None
        names = sorted(sibling.rfilename for sibling in info.siblings or ())
        return HubDataset(self.repository, info.sha, self.path), names

    def ranges(self, hub: Hub, path: str) -> Ranges:
        """One file, to be read in place: of a commit, so that it cannot change meanwhile."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import get_session, hf_raise_for_status

        token = hub.token or False
        url = hf_hub_url(self.repository, path, repo_type="dataset", revision=self.revision, endpoint=hub.endpoint)
        uri = self.uri(path)

        def size() -> int:
            try:
                return get_hf_file_metadata(url, token=token, endpoint=hub.endpoint).size or 0
            except Exception as error:
                raise self._explain(error, hub) from None

        def fetch(start: int, stop: int) -> bytes:
            # Of compressed answers, parts are parts of something else.
            part = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            send = build_hf_headers(token=token) | part
            try:
                with get_session().stream("GET", url, headers=send, timeout=60) as answer:
                    hf_raise_for_status(answer)
                    if answer.status_code == 206 or (start == 0 and answer.headers.get("Content-Length") == str(stop)):
                        return b"".join(answer.iter_bytes())
            except Exception as error:
                raise self._explain(error, hub) from None
            raise FinetuneError(
                Reason.InvalidSpec,
                f"cannot read {uri}: the hub gives whole files only",
                "Set HF_ENDPOINT to a mirror that answers range requests, or put the data into a bucket or volume.",
            )

        def patient(start: int, stop: int) -> bytes:
            return retrying(lambda: fetch(start, stop), seconds=PATIENCE)

        return Ranges(uri, retrying(size, seconds=PATIENCE), patient)

    def _explain(self, error: Exception, hub: Hub) -> FinetuneError:
        plain = HubDataset(self.repository, None, self.path).uri(self.path)
        return explain(error, plain, self.revision, known=bool(hub.token), section="data", missing=Reason.DataNotFound)


def explain(
    error: Exception, uri: str, revision: str | None, *, known: bool, section: str, missing: Reason
) -> FinetuneError:
    """The hub's client raises errors of three libraries; none of their text is passed on.

    `known`: whether a token was sent. The hub answers 401, not 404, when a stranger asks for what is not there.
    `section` of the manifest (model, data) is what the hints are about, `missing` the reason of what is not there.
    """
    what = f"{uri} at {revision}" if revision else uri
    chain = [error, error.__cause__, error.__context__]
    kinds = {type(e).__name__ for e in chain if e is not None}
    status = next((r.status_code for e in chain if (r := getattr(e, "response", None)) is not None), None)
    if "RevisionNotFoundError" in kinds:
        return FinetuneError(missing, f"{uri} has no revision {revision or 'main'}")
    if "EntryNotFoundError" in kinds or "RemoteEntryNotFoundError" in kinds:
        return FinetuneError(missing, f"there is no file {what}")
    if "GatedRepoError" in kinds or status == 403:
        hint = f"Accept the terms on its page, and give HF_TOKEN in the Secret of {section}.credentials."
        reason = Reason.CredentialsRejected if known else Reason.CredentialsMissing
        return FinetuneError(reason, f"{what} may be read only by those who accepted its terms", hint)
    if status == 401 and known:
        return FinetuneError(Reason.CredentialsRejected, f"the hub refused HF_TOKEN for {what}", "Check HF_TOKEN.")
    if status in (401, 404) or "HFValidationError" in kinds:
        hint = f"Check {section}.uri; if it is private, give HF_TOKEN in the Secret of {section}.credentials."
        return FinetuneError(missing, f"there is no {section} {what}, or it is private", hint)
    why = f"HTTP {status}" if status else "no connection"
    return FinetuneError(
        Reason.StorageUnavailable,
        f"cannot download {what}: the model hub is not available ({why})",
        "Set HF_ENDPOINT to a mirror that the pods (for a local command: this machine) can reach, or put the "
        f"{section} into a bucket (s3://…), a volume (pvc://…) or, for a local command, a folder.",
    )
