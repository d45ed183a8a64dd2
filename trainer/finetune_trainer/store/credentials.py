"""How a store is reached: credentials and settings from the environment, which a Secret fills.

A name is looked up with the section's prefix first (FINETUNE_OUTPUT_AWS_ACCESS_KEY_ID), then as it is. Names that only
work together are taken from one of the two places, never mixed: a key of one account with a token of another is
refused by every store, for no visible reason. obstore reads the plain names from the process too, so static AWS keys
have a custom credential provider.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.failures import FinetuneError, Reason
from finetune_api.uris import Uri

_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AWS_ROLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)  # fmt: skip
_AWS_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_AWS_SETTINGS = (
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_UNSIGNED_PAYLOAD", "AWS_CHECKSUM_ALGORITHM", "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID", "AWS_SSE_BUCKET_KEY_ENABLED", "AWS_SSE_CUSTOMER_KEY_BASE64", "AWS_REQUEST_PAYER",
    "AWS_DISABLE_BULK_DELETE", "AWS_METADATA_ENDPOINT", "AWS_IMDSV1_FALLBACK", "AWS_STS_ENDPOINT",
)  # fmt: skip
_GOOGLE = (
    "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN", "GOOGLE_BASE_URL", "GOOGLE_SKIP_SIGNATURE",
)  # fmt: skip
_AZURE = (
    "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN",
    "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
    "AZURE_STORAGE_ENDPOINT", "AZURE_STORAGE_USE_EMULATOR", "AZURE_SKIP_SIGNATURE",
)  # fmt: skip
_AZURE_IDENTITY = frozenset(_AZURE[:9])


@dataclass(frozen=True)
class Access:
    """Arguments for an obstore store, besides the bucket."""

    config: Mapping[str, str]
    provider: Callable[[], dict[str, Any]] | None = None
    endpoint: str = ""

    @property
    def plain_http(self) -> bool:
        return self.endpoint.startswith("http://")


def access(uri: Uri, *, prefix: str, environ: Mapping[str, str]) -> Access:
    """For an s3, gs or az URI. CredentialsMissing where it is certain that no request could be signed."""
    lookup = _Lookup(prefix, environ)
    return {"s3": _aws, "gs": _google, "az": _azure}[uri.scheme](uri, lookup)


@dataclass(frozen=True)
class _Lookup:
    prefix: str
    environ: Mapping[str, str]

    def one(self, *names: str) -> str:
        """The first of the names that is set, under the prefix before without."""
        places = (self.prefix, "")
        return next((v for p in places for n in names if (v := self.environ.get(p + n, "").strip())), "")

    def some(self, names: tuple[str, ...]) -> dict[str, str]:
        return {name: value for name in names if (value := self.one(name))}

    def together(self, names: tuple[str, ...]) -> dict[str, str]:
        """All from under the prefix if one of them is there, else all from without it."""
        for place in (self.prefix, ""):
            if found := {n: v for n in names if (v := self.environ.get(place + n, "").strip())}:
                return found
        return {}


def _aws(uri: Uri, lookup: _Lookup) -> Access:
    endpoint = lookup.one(*_AWS_ENDPOINTS)
    keys = lookup.together(_AWS_KEYS)
    roles = lookup.some(_AWS_ROLES)
    anonymous = lookup.one("AWS_SKIP_SIGNATURE").lower() in ("1", "true")
    config = lookup.some(_AWS_SETTINGS) | {"AWS_REGION": lookup.one("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"}
    if endpoint:
        config["AWS_ENDPOINT_URL_S3"] = endpoint
    if anonymous:
        return Access(config | {"AWS_SKIP_SIGNATURE": "true"}, endpoint=endpoint)
    if keys:
        return Access(config, _static_keys(uri, keys, lookup), endpoint)
    if endpoint and not roles and "amazonaws.com" not in endpoint:
        # Another server than Amazon's: no machine identity can help, so there is no point in asking for one.
        raise _missing(uri, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", lookup)
    return Access(config | roles, endpoint=endpoint)


def _static_keys(uri: Uri, keys: Mapping[str, str], lookup: _Lookup) -> Callable[[], dict[str, Any]]:
    for name in _AWS_KEYS[:2]:
        if name not in keys:
            raise _missing(uri, name, lookup)
    credential = {
        "access_key_id": keys["AWS_ACCESS_KEY_ID"],
        "secret_access_key": keys["AWS_SECRET_ACCESS_KEY"],
        "token": keys.get("AWS_SESSION_TOKEN"),
        "expires_at": None,
    }
    return lambda: dict(credential)


def _google(_uri: Uri, lookup: _Lookup) -> Access:
    config = lookup.some(_GOOGLE)
    return Access(config, endpoint=config.get("GOOGLE_BASE_URL", ""))


def _azure(uri: Uri, lookup: _Lookup) -> Access:
    identity = lookup.together(tuple(n for n in _AZURE if n in _AZURE_IDENTITY))
    config = identity | lookup.some(tuple(n for n in _AZURE if n not in _AZURE_IDENTITY))
    if "AZURE_STORAGE_ACCOUNT_NAME" not in config and "AZURE_STORAGE_USE_EMULATOR" not in config:
        raise _missing(uri, "AZURE_STORAGE_ACCOUNT_NAME", lookup)
    return Access(config, endpoint=config.get("AZURE_STORAGE_ENDPOINT", ""))


def _missing(uri: Uri, names: str, lookup: _Lookup) -> FinetuneError:
    section = lookup.prefix.removeprefix("FINETUNE_").removesuffix("_").lower() or "its section"
    return FinetuneError(
        Reason.CredentialsMissing,
        f"no credentials for {uri.text}: {names} not set",
        f"Name a Secret that has {names} in {section}.credentials.secretName; on a laptop, set the environment.",
    )
