"""The Dockerfile, without Docker: what it copies is there, what it installs is pinned by hash and listed in the bill
of materials."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import audit, image_lock, sbom

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = image_lock.LOCK.read_text()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", TEXT, re.M | re.S))
IMAGES = ["operator", "trainer"]


def test_what_is_copied_is_there_and_is_all_that_the_wheel_needs() -> None:
    copied = [word for line in re.findall(r"^COPY (.*)$", TEXT, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= set(copied)


@pytest.mark.parametrize("image", [*IMAGES, "trainer-cpu"])
def test_an_image_installs_only_what_has_a_hash_and_is_not_run_by_root(image: str) -> None:
    lines = re.sub(r"&& if .*", "", STAGES[image])  # more extras, by version
    installs = re.findall(r"pip install (.*?)(?: \\)?$", lines, re.MULTILINE)

    assert installs[0] == f"--no-compile --require-hashes --no-deps -r /wheels/{image}.lock"
    assert installs[-1] == "--no-compile --no-index --no-deps /wheels/*.whl"
    assert len(installs) == (3 if image == "trainer-cpu" else 2)
    assert "USER 65532\n" in STAGES[image]


def test_more_extras_of_the_trainer_are_pinned_by_version() -> None:
    assert 'pip install --no-compile -c /wheels/constraints.txt "$(ls /wheels/*.whl)[$EXTRAS]"' in STAGES["trainer"]
    assert "ARG EXTRAS=" + ",".join(image_lock.EXTRAS["trainer"]) in STAGES["trainer"]
    pattern = re.search(r"sed -n 's/(.*)/\\1/p'", TEXT)
    assert pattern
    python = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
    pinned = dict(line.split("==") for line in re.findall(python, LOCK, re.MULTILINE))
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"]["trackers"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_packages_of_the_images_are_current() -> None:
    assert image_lock.PACKAGES.read_text() == image_lock.generated(), "run: make generate"


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_that_an_image_asks_for_is_in_it_at_a_version_that_it_allows(image: str) -> None:
    pinned = dict(audit.locked(image_lock.part(LOCK, image_lock.packages()[image])))
    asked = [*PROJECT["project"]["dependencies"]]
    for extra in image_lock.EXTRAS[image]:
        asked += PROJECT["project"]["optional-dependencies"][extra]

    assert len(pinned) > len(asked)
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("image", ["build", *IMAGES])
def test_every_entry_has_hashes(image: str) -> None:
    entries = re.split(r"^(?=\S)", image_lock.part(LOCK, image_lock.packages()[image]), flags=re.MULTILINE)[1:]

    assert len(entries) >= len(image_lock.packages()[image]) > 5
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_operators_image_has_no_torch() -> None:
    assert not {"torch", "numpy", "transformers"} & {*image_lock.packages()["operator"]}
    assert {"torch", "triton", "nvidia-nccl-cu13"} <= {*image_lock.packages()["trainer"]}


def test_a_package_can_be_left_out_by_its_name_or_its_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    image_lock.main(["trainer", "--without", "torch", "nvidia-*"])
    found = {name for name, _ in audit.locked(capsys.readouterr().out)}

    assert {"torch", "nvidia-nccl-cu13"} & found == set()
    assert {"transformers", "triton"} <= found


def test_a_package_that_the_lock_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"requirements\.lock does not have nonesuch"):
        image_lock.part(LOCK, ["pyyaml", "nonesuch"])


@pytest.mark.parametrize("image", IMAGES)
def test_the_bill_of_materials_lists_what_is_installed(image: str) -> None:
    lock = image_lock.part(LOCK, image_lock.packages()[image])
    text = sbom.bill(image, lock, {"pyyaml": "MIT"}, debian={"libc6": "2.36-9+deb12u1"})
    made = json.loads(text)
    components = {each["name"]: each for each in made["components"]}

    assert (made["bomFormat"], made["specVersion"], made["version"]) == ("CycloneDX", "1.6", 1)
    assert {name: each["version"] for name, each in components.items()} == {
        **dict(audit.locked(lock)), "libc6": "2.36-9+deb12u1"
    }  # fmt: skip
    assert components["pyyaml"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert components["pyyaml"]["purl"] == f"pkg:pypi/pyyaml@{components['pyyaml']['version']}"
    assert components["libc6"]["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1"
    assert made["dependencies"] == [
        {"ref": f"finetune-{image}", "dependsOn": [each["bom-ref"] for each in made["components"]]}
    ]
    assert len({each["bom-ref"] for each in made["components"]}) == len(components)


def test_the_same_lock_makes_the_same_bill_and_another_one_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (sbom.bill("operator", lock, {}) for lock in ("a==1 \\\n", "a==1 \\\n"))
    other = sbom.bill("operator", "a==2 \\\n", {})

    assert first == again
    assert json.loads(first)["serialNumber"] != json.loads(other)["serialNumber"]
    sbom.main(["operator"])
    assert "kopf" in capsys.readouterr().out
