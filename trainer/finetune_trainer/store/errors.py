"""What an object store's refusal means to a user.

The text of obstore's errors holds answers of the server, which may repeat an access key, a string to sign or a signed
URL. So nothing of it is passed on but the HTTP status, the error code, and a few known phrases.
"""

from __future__ import annotations

import re

from finetune_api.failures import FinetuneError, Reason

from .folder import BucketMissing, NotFound

_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_BAD_KEYS = frozenset(
    {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch",
     "AccessDenied", "AuthorizationHeaderMalformed", "InvalidTokenId", "AuthenticationFailed"}
)  # fmt: skip
_TRY_AGAIN = frozenset({"RequestTimeout", "SlowDown", "IncompleteBody", "BadDigest", "InternalError", "ServerBusy"})
_CLOCK = "RequestTimeTooSkewed"
_METADATA = ("169.254.169.254", "metadata.google.internal", "169.254.170.2", "token request")
_UNTRUSTED = "its TLS certificate is not trusted"
_TRANSPORT = (
    ("Connection refused", "connection refused"),
    ("dns error", "its name cannot be resolved"),
    ("failed to lookup address", "its name cannot be resolved"),
    ("InvalidCertificate", _UNTRUSTED),
    ("timed out", "timed out"),
    ("TimedOut", "timed out"),
    ("Connection reset", "connection reset"),
)


def explain(error: Exception, *, doing: str, where: str, bucket: str, endpoint: str) -> FinetuneError:
    """The failure of `doing` (read, write, list, delete) at the URI `where`, from an obstore exception."""
    text = str(error)
    status = int(m[1]) if (m := re.search(r"status code: (\d{3})", text)) else None
    code = m[1] if (m := re.search(r"<Code>(\w{1,64})</Code>", text)) else ""
    said = " ".join(part for part in (f"HTTP {status}" if status else "", code) if part)
    cannot = f"cannot {doing} {where}"
    if code in _NO_BUCKET:
        return BucketMissing(
            f"there is no bucket {bucket} ({cannot})", f"Create the bucket {bucket}, or correct the URI."
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFound(f"there is no file {where}")
    if any(phrase in text for phrase in _METADATA):
        return FinetuneError(Reason.CredentialsMissing, f"{cannot}: no credentials, and this machine has no identity")
    if _refused(error, status, code):
        hint = "Set the clock of the node." if code == _CLOCK else ""
        return FinetuneError(Reason.CredentialsRejected, f"{cannot}: the store refused the credentials ({said})", hint)
    if "redirect" in text:
        return FinetuneError(
            Reason.InvalidSpec, f"{cannot}: the bucket {bucket} is in another region", "Set AWS_REGION to the bucket's."
        )
    if status and 400 <= status < 500 and status not in (408, 429) and code not in _TRY_AGAIN:
        return FinetuneError(Reason.InvalidSpec, f"{cannot}: the store refused the request ({said})", "Check the URI.")
    why = said or next((meaning for phrase, meaning in _TRANSPORT if phrase in text), "no answer")
    at = f" at {endpoint}" if endpoint else ""
    hint = (
        "Mount the certificates of your authorities, and name their file in SSL_CERT_FILE." if why == _UNTRUSTED else ""
    )
    return FinetuneError(Reason.StorageUnavailable, f"{cannot}: the store{at} is not available ({why})", hint)


def explain_setup(error: Exception, *, where: str) -> FinetuneError:
    """A store that cannot even be configured: a malformed key, a missing file of credentials."""
    return FinetuneError(
        Reason.CredentialsRejected,
        f"the credentials or settings for {where} cannot be used ({type(error).__name__})",
        "Check the form of the values in the Secret: keys, key files, endpoint and region.",
    )


def _refused(error: Exception, status: int | None, code: str) -> bool:
    by_type = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    return by_type or isinstance(error, PermissionError) or status in (401, 403) or code in _BAD_KEYS
