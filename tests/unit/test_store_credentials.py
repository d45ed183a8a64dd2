"""Which keys are used, and what is said when there are none."""

from __future__ import annotations

import pytest

from finetune_api import names, uris
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.credentials import access
from finetune_trainer.store.opening import open_folder

S3 = uris.parse("s3://corp/models")
KEYS = {"AWS_ACCESS_KEY_ID": "plain", "AWS_SECRET_ACCESS_KEY": "plain-secret"}


def prefixed(**values: str) -> dict[str, str]:
    return {names.PREFIX_OUTPUT + name: value for name, value in values.items()}


def keys(environ: dict[str, str]) -> dict[str, object]:
    provider = access(S3, prefix=names.PREFIX_OUTPUT, environ=environ).provider
    assert provider is not None
    return provider()


def test_the_sections_own_keys_come_first() -> None:
    mine = prefixed(AWS_ACCESS_KEY_ID="mine", AWS_SECRET_ACCESS_KEY="my-secret")
    assert keys(KEYS | mine)["access_key_id"] == "mine"
    assert keys(KEYS)["access_key_id"] == "plain"


def test_keys_of_two_accounts_are_never_mixed() -> None:
    mine = prefixed(AWS_ACCESS_KEY_ID="mine", AWS_SECRET_ACCESS_KEY="my-secret")
    assert keys(KEYS | {"AWS_SESSION_TOKEN": "of-plain"} | mine)["token"] is None
    assert keys(KEYS | {"AWS_SESSION_TOKEN": "of-plain"})["token"] == "of-plain"
    with pytest.raises(FinetuneError, match="AWS_SECRET_ACCESS_KEY not set"):
        keys(KEYS | prefixed(AWS_ACCESS_KEY_ID="mine"))


def test_settings_come_from_both_places() -> None:
    environ = KEYS | prefixed(AWS_ENDPOINT_URL="http://minio:9000") | {"AWS_REGION": "eu-central-1"}
    found = access(S3, prefix=names.PREFIX_OUTPUT, environ=environ)
    assert found.endpoint == "http://minio:9000"
    assert found.plain_http
    assert found.config["AWS_REGION"] == "eu-central-1"


def test_the_region_has_a_default() -> None:
    assert access(S3, prefix="", environ=KEYS).config["AWS_REGION"] == "us-east-1"


@pytest.mark.parametrize(
    ("uri", "environ", "says"),
    [
        ("s3://corp/x", {"AWS_ENDPOINT_URL": "http://minio:9000"}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://corp/x", {"AWS_ACCESS_KEY_ID": "k"}, "AWS_SECRET_ACCESS_KEY"),
        ("s3://corp/x", {"AWS_SECRET_ACCESS_KEY": "k", "AWS_ACCESS_KEY_ID": " "}, "AWS_ACCESS_KEY_ID"),
        ("az://corp/x", {}, "AZURE_STORAGE_ACCOUNT_NAME"),
    ],
)
def test_missing_keys_are_named_with_the_field_to_set(uri: str, environ: dict[str, str], says: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        open_folder(uri, prefix=names.PREFIX_OUTPUT, environ=environ)
    assert caught.value.reason is Reason.CredentialsMissing
    assert f"no credentials for {uri}: {says} not set" in caught.value.message
    assert "output.credentials.secretName" in caught.value.hint


def test_public_buckets_need_no_keys() -> None:
    found = access(S3, prefix="", environ={"AWS_SKIP_SIGNATURE": "true", "AWS_ENDPOINT_URL": "http://minio:9000"})
    assert found.provider is None
    assert found.config["AWS_SKIP_SIGNATURE"] == "true"


def test_roles_of_the_pod_are_passed_on() -> None:
    environ = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"}
    assert access(S3, prefix="", environ=environ).config["AWS_ROLE_ARN"] == "arn:aws:iam::1:role/x"


@pytest.mark.parametrize(
    ("uri", "environ"),
    [
        ("az://corp/x", {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "CANARY!not-base64"}),
        ("gs://corp/x", {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "CANARY"}'}),
        ("gs://corp/x", {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json"}),
    ],
)
def test_keys_that_are_no_keys_are_rejected_without_being_shown(uri: str, environ: dict[str, str]) -> None:
    with pytest.raises(FinetuneError) as caught:
        open_folder(uri, prefix="", environ=environ)
    assert caught.value.reason is Reason.CredentialsRejected
    assert "CANARY" not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"


def test_keys_do_not_show_in_what_is_printed() -> None:
    environ = {"AWS_ACCESS_KEY_ID": "CANARY", "AWS_SECRET_ACCESS_KEY": "CANARY", "AWS_SESSION_TOKEN": "CANARY"}
    assert "CANARY" not in repr(open_folder("s3://corp/x", prefix="", environ=environ, patience=1))
