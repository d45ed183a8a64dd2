"""What decides whether an image is built again, and what the builder says where it cannot build."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools import image_build, sbom

TEXT = image_build.DOCKERFILE.read_text()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a Dockerfile that copies a file and a folder."""
    for file in ("Dockerfile", ".dockerignore", "tools/base.Dockerfile", "tools/image_build.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(image_build.ROOT / file, tmp_path / file)
    (tmp_path / "Dockerfile").write_text("FROM x\nCOPY lock code ./\nCOPY --from=wheel /elsewhere /there\n")
    (tmp_path / "lock").write_text("a==1")
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "main.py").write_text("print(1)")
    (tmp_path / "code" / "__pycache__" / "main.pyc").write_text("1")
    monkeypatch.setattr(image_build, "ROOT", tmp_path)
    monkeypatch.setattr(image_build, "DOCKERFILE", tmp_path / "Dockerfile")
    monkeypatch.setattr(image_build, "BASE", tmp_path / "tools" / "base.Dockerfile")
    monkeypatch.setattr(image_build, "__file__", str(tmp_path / "tools" / "image_build.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "built_again"),
    [
        ("lock", True),
        ("code/main.py", True),
        ("Dockerfile", True),
        (".dockerignore", True),
        ("tools/base.Dockerfile", True),
        ("tools/image_build.py", True),
        ("code/__pycache__/main.pyc", False),
        ("README.md", False),
    ],
)
def test_an_image_is_built_again_when_something_changes_that_goes_into_it(
    checkout: Path, file: str, built_again: bool
) -> None:
    before = image_build.key()
    with (checkout / file).open("a") as changed:
        changed.write("\n# changed")
    assert (image_build.key() != before) == built_again


def test_a_file_that_goes_into_the_image_counts_by_its_name_too(checkout: Path) -> None:
    before = image_build.key()
    (checkout / "code" / "main.py").rename(checkout / "code" / "other.py")
    assert image_build.key() != before


def test_the_key_has_the_lock_file_and_the_code_of_the_real_dockerfile() -> None:
    found = {str(file.relative_to(image_build.ROOT)) for file in image_build.sources(TEXT)}
    assert {
        "requirements.lock", "tools/images.toml", "tools/sbom.py", "operator/finetune_operator/decide.py",
        "crds/finetune_api/spec.py",
    } <= found  # fmt: skip


def test_a_build_with_the_same_key_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []

    def made(image: str, archive: Path, folder: Path) -> str:
        builds.append(image)
        archive.write_text("image")
        return f"sha256:{len(builds)}"

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(image_build, "_build", made)
    monkeypatch.setattr(image_build, "key", lambda: "one")
    first = image_build.build("operator", say=lambda _: None)
    assert image_build.build("operator", say=lambda _: None) == first
    monkeypatch.setattr(image_build, "key", lambda: "two")
    assert image_build.build("operator", say=lambda _: None).digest == "sha256:2"
    first.archive.unlink()
    assert image_build.build("operator", say=lambda _: None).digest == "sha256:3"


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("Failed to establish a new connection: NewConnectionError", image_build.UnreachableError),
        ("Temporary failure in name resolution", image_build.UnreachableError),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", image_build.BuildError),
    ],
)
def test_a_failed_step_is_an_error_and_a_missing_network_is_told_apart(
    output: str, error: type[image_build.BuildError]
) -> None:
    with pytest.raises(image_build.BuildError, match=output[:20]) as raised:
        image_build._run(["sh", "-c", f"echo '{output}'; exit 1"])
    assert type(raised.value) is error


def test_a_machine_that_cannot_build_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_build.shutil, "which", lambda name: None if name == "buildah" else name)
    monkeypatch.setattr(image_build.os, "geteuid", lambda: 1000)
    assert image_build.missing() == [
        "no buildah (Debian: apt-get install buildah)", "building an image needs root"
    ]  # fmt: skip
    assert image_build.main(["operator"]) == 1
    assert "no buildah" in capsys.readouterr().err


def test_the_bill_lists_debian_packages_that_are_there() -> None:
    status = (
        "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nDescription: C library\n more: text\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: sed\nVersion: 4.9-1\nStatus: install ok unpacked\n"
    )
    assert sbom.debian(status) == {"libc6": "2.36-9", "sed": "4.9-1"}
    assert sbom.debian("") == {}


@pytest.mark.parametrize(("image", "compiler"), [("operator", False), ("trainer", True)])
def test_only_the_trainers_base_has_a_compiler_and_each_is_kept_by_itself(
    image: str, compiler: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def built(_: Path, words: object, archive: Path) -> str:
        archive.write_text(image)
        return "sha256:1"

    monkeypatch.setattr(image_build, "_debian_packages", lambda _, packages: asked.extend(packages) or [])
    monkeypatch.setattr(image_build, "_root_of", lambda _, root: root)
    monkeypatch.setattr(image_build, "_buildah", built)
    other = image_build._base_stamp("operator" if compiler else "trainer", tmp_path).with_suffix(".tar")
    other.write_text("the other's")
    base = image_build._base(image, tmp_path)
    assert (base.read_text(), other.read_text(), "g++" in asked, "python3" in asked) == (
        image, "the other's", compiler, True
    )  # fmt: skip
    asked.clear()
    assert (image_build._base(image, tmp_path), asked) == (base, [])
