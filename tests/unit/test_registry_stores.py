"""Every kind of store, in every place that must know it: see "Add a store" in docs/extending.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune_api import uris
from finetune_api.failures import FinetuneError, Reason
from finetune_api.manifest import accepted_form
from finetune_api.spec import ModelSource, Output
from finetune_trainer.store.opening import SCHEMES, open_folder

ROOT = Path(__file__).parents[2]
URIS = {
    "file": "file:///a/b",
    "pvc": "pvc://claim/a",
    "s3": "s3://bucket/a",
    "gs": "gs://bucket/a",
    "az": "az://bucket/a",
}
NEEDS_SETTINGS = {"az"}
"""Without an account's name there is nothing to ask."""
HUB = "hf"
"""Models and data are read there; no results are written."""


def schemes_of(pattern: str) -> set[str]:
    """`(s3|gs)://…|file:///…` → {s3, gs, file}"""
    return {scheme for group in re.findall(r"([a-z0-9|]+)\)?://", pattern) for scheme in group.split("|") if scheme}


def test_what_a_manifest_may_name_can_be_opened() -> None:
    assert set(URIS) == SCHEMES
    assert schemes_of(uris.OUTPUT) == SCHEMES
    assert schemes_of(uris.MODEL) == schemes_of(uris.DATA) == {*SCHEMES, HUB}


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_store_opens_or_names_the_credentials_that_it_lacks(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    parsed = uris.parse(URIS[scheme])
    assert (parsed.scheme, parsed.text) == (scheme, URIS[scheme])
    environ = {"FINETUNE_PVC_ROOT": str(tmp_path)}
    if scheme in NEEDS_SETTINGS:
        with pytest.raises(FinetuneError, match=r"[A-Z]+_[A-Z_]+ not set") as refused:
            open_folder(URIS[scheme], prefix="", environ=environ)
        assert refused.value.reason is Reason.CredentialsMissing
    else:
        assert open_folder(URIS[scheme], prefix="", environ=environ).uri == URIS[scheme]


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_store_is_named_wherever_a_user_looks(scheme: str) -> None:
    with pytest.raises(ValueError, match="is not a supported URI") as refused:
        uris.parse("ftp://host/a")
    texts = {
        "the refusal of an unknown scheme": str(refused.value),
        "the form of model.uri": accepted_form(uris.MODEL),
        "the form of data[].uri": accepted_form(uris.DATA),
        "the form of output.uri": accepted_form(uris.OUTPUT),
        "model.uri": str(ModelSource.model_fields["uri"].description),
        "output.uri": str(Output.model_fields["uri"].description),
        "docs/data.md": (ROOT / "docs" / "data.md").read_text(),
    }
    assert [where for where, text in texts.items() if f"{scheme}://" not in text] == []
