"""Builds an image from the Dockerfile without a registry and without Docker: buildah runs the Dockerfile's own steps on
a base of Debian packages (tools/base.Dockerfile), as root on Debian.

    python tools/image_build.py operator            prints the image's digest and its archive (OCI) in the cache
    python tools/image_build.py operator --twice    also builds it again: the digests must be equal
    python tools/image_build.py trainer             with CUDA's libraries: 10 GB of disk while it builds

An archive is kept until a file changes that the Dockerfile copies, or one of those that describe the base."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.cluster.rig.state import locked
from tools.packages import cache_root

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE, BASE = ROOT / "Dockerfile", ROOT / "tools" / "base.Dockerfile"
PACKAGES = ("base-files", "base-passwd", "ca-certificates", "coreutils", "dash", "python3", "python3-venv", "sed")
"""Of the base, with what they depend on: what the Dockerfile's steps use of python:3.11-slim."""
COMPILER = ("g++", "python3-dev")
"""Of the trainer's base too: there is no apt-get in it that could install them in a step of the Dockerfile."""
MINUTES = {"operator": "a minute", "trainer": "ten minutes"}
LEFT_OUT = ("doc", "man", "locale")  # folders of /usr/share
MERGED = ("bin", "sbin", "lib", "lib64")  # links into /usr, which Debian's installer makes
TIME = "1767225600"  # of all files: two builds are equal
NEEDS = ("buildah", "apt-get", "dpkg-deb", "tar")
UNREACHED = re.compile(r"NewConnectionError|ConnectTimeout|Temporary failure in name resolution|Network is unreachable")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class BuildError(RuntimeError):
    """The image was not built; the message has the end of the builder's output."""


class UnreachableError(BuildError):
    """Debian's or Python's packages cannot be had here."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """An OCI archive, and the digest of its manifest."""

    archive: Path
    digest: str


def missing() -> list[str]:
    """What this machine lacks to build an image, in words that a skipped test can show."""
    lacking = [f"no {name} (Debian: apt-get install {name})" for name in NEEDS if not shutil.which(name)]
    return lacking + (["building an image needs root"] if os.geteuid() != 0 else [])


def build(image: str, *, say: Callable[[str], None] = print) -> Image:
    """The image of the Dockerfile's stage of that name, from the cache if nothing changed since it was built."""
    folder = cache_root() / "images"
    with locked(folder / "build.lock"):
        made = Image(archive=folder / f"{image}.tar", digest=_stamp(folder / f"{image}.digest", key()))
        if made.digest and made.archive.exists():
            return made
        say(f"image: building {image}, about {MINUTES[image]} of CPU time")
        digest = _build(image, made.archive, folder)
        made.archive.with_suffix(".digest").write_text(f"{key()} {digest}\n")
        return Image(archive=made.archive, digest=digest)


def _stamp(file: Path, wanted: str) -> str:
    """The digest in a file `KEY DIGEST`; empty if there is none, or another key."""
    found = file.read_text().split() if file.exists() else []
    return found[1] if found[:1] == [wanted] and len(found) == 2 else ""


def key() -> str:
    """Changes with everything that goes into an image: the Dockerfile, what it copies, the base's description."""
    digest = hashlib.sha256()
    for file in sources(DOCKERFILE.read_text()):
        digest.update(f"{file.relative_to(ROOT)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def sources(dockerfile: str) -> list[Path]:
    """The files that its COPY instructions name, those in folders that they name, and those that build it."""
    named = [word for line in re.findall(r"^COPY (?!--)(.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]]
    found = {DOCKERFILE, BASE, Path(__file__).resolve(), ROOT / ".dockerignore"}
    for path in (ROOT / name for name in named):
        found |= {path} if path.is_file() else {each for each in path.rglob("*") if each.is_file()}
    return sorted(file for file in found if "__pycache__" not in file.parts)


def rebuilt(image: str) -> str:
    """The digest of the same image built again, from the base on."""
    folder = cache_root() / "images"
    with locked(folder / "build.lock"):
        again = folder / f"{image}.again"
        _base_stamp(image, folder).unlink(missing_ok=True)
        digest = _build(image, again, folder)
        again.unlink()
        return digest


def _build(image: str, archive: Path, folder: Path) -> str:
    """Writes the archive and returns its digest."""
    base = _base(image, folder)
    with _workplace(folder) as here:
        trust = ["-v", f"{_bundle()}:{BUNDLE}:ro", "-v", f"{_pip_settings(here)}:/etc/pip.conf:ro"]
        return _buildah(here, ["--target", image, "--build-arg", f"PYTHON=oci-archive:{base}", *trust,
                               "-f", str(DOCKERFILE), str(ROOT)], archive)  # fmt: skip


def _base(image: str, folder: Path) -> Path:
    """The base's archive. Debian packages are the newest: their versions are in the image's bill of materials."""
    wanted = hashlib.sha256(BASE.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    stamp = _base_stamp(image, folder)
    archive = stamp.with_suffix(".tar")
    if not (_stamp(stamp, wanted) and archive.exists()):
        with _workplace(folder) as here:
            packages = (*PACKAGES, *COMPILER) if image == "trainer" else PACKAGES
            root = _root_of(_debian_packages(here, packages), here / "root")
            digest = _buildah(here, ["-f", str(BASE), str(root)], archive)
        stamp.write_text(f"{wanted} {digest}\n")
    return archive


def _base_stamp(image: str, folder: Path) -> Path:
    """Where the digest of an image's base is kept; its archive is in the same folder."""
    return folder / ("base-trainer.digest" if image == "trainer" else "base.digest")


def _debian_packages(here: Path, packages: Sequence[str]) -> list[Path]:
    """Downloads these packages and all that they depend on; apt checks them against its signed index."""
    (here / "debs" / "partial").mkdir(parents=True)
    (here / "nothing-installed").touch()
    options = {
        "Dir::State::status": here / "nothing-installed", "Dir::Cache::archives": here / "debs",
        "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "", "Debug::NoLocking": 1,
        "APT::Install-Recommends": "false", "APT::Sandbox::User": "root",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    command = ["apt-get", "-qq", *words, "--download-only", "-y", "install", *packages]
    if subprocess.run(command, capture_output=True).returncode:  # no index yet, or one that is too old
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise UnreachableError(f"Debian's packages cannot be had: {done.stdout.strip()[-500:]}")
    return sorted((here / "debs").glob("*.deb"))


def _root_of(packages: Sequence[Path], root: Path) -> Path:
    """A folder with the packages' content, and the list of them where dpkg keeps it."""
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    without = [f"--exclude=./usr/share/{name}/*" for name in LEFT_OUT]
    known = []
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as content:
            unpack = ["tar", "-x", "-C", root, "--keep-directory-symlink", *without]
            subprocess.run(unpack, stdin=content.stdout, check=True)
        if content.returncode:
            raise BuildError(f"{package.name} cannot be unpacked")
        fields = subprocess.run(["dpkg-deb", "-f", package], text=True, capture_output=True, check=True).stdout
        known.append(f"{fields.rstrip()}\nStatus: install ok unpacked\n")
    (root / "etc" / "pip.conf").touch()  # mount points of a build
    (root / "etc" / "ssl" / "certs").mkdir(parents=True, exist_ok=True)
    (root / "var" / "lib" / "dpkg" / "status").write_text("\n".join(known))
    return root


def _buildah(here: Path, words: Sequence[str], archive: Path) -> str:
    """Runs one build in a store of its own and writes the image as `archive`. Returns the manifest's digest."""
    buildah = ["buildah", "--root", str(here / "store"), "--runroot", str(here / "run")]
    _run([*buildah, "build", "--isolation", "chroot", "--layers=false", "--timestamp", TIME, "-t", "built", *words])
    new, digest = archive.with_suffix(".new"), here / "digest"
    new.unlink(missing_ok=True)
    target = f"oci-archive:{new}:{archive.stem}"
    _run([*buildah, "push", "-q", "-D", "--digestfile", str(digest), "localhost/built", target])
    new.replace(archive)
    return digest.read_text().strip()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        kind = UnreachableError if UNREACHED.search(done.stdout) else BuildError
        raise kind(f"{' '.join(command[:6])} ... failed:\n{done.stdout.strip()[-3000:]}")


def _pip_settings(here: Path) -> Path:
    """This machine's package index, and its certificates, for the build alone."""
    asked = {name: os.environ.get(f"PIP_{name.upper().replace('-', '_')}") for name in ("index-url", "proxy")}
    lines = [f"{name} = {value}" for name, value in {**asked, "cert": BUNDLE, "timeout": "60"}.items() if value]
    file = here / "pip.conf"
    file.write_text("\n".join(["[global]", *lines, ""]))
    return file


def _bundle() -> str:
    """The certificates that this machine trusts, which may include a proxy's."""
    found = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    return found if found and Path(found).is_file() else BUNDLE


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder for one build. Callers hold the lock, so other folders were left by builds that were killed."""
    for stale in folder.glob("work-*"):
        _remove(stale)
    here = Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    try:
        yield here
    finally:
        _remove(here)


def _remove(here: Path) -> None:
    """Also where buildah's mounts are left in it, which would otherwise be emptied: some are this machine's folders."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{here}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True, check=True)
    shutil.rmtree(here, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds an image of the Dockerfile with buildah, without a registry.")
    parser.add_argument("image", choices=sorted(MINUTES))
    parser.add_argument("--twice", action="store_true", help="build it again and compare the digests")
    options = parser.parse_args(arguments)
    if lacking := missing():
        print(f"image: cannot build: {'; '.join(lacking)}", file=sys.stderr)
        return 1
    made = build(options.image)
    print(f"image: {options.image} {made.digest} in {made.archive}, {made.archive.stat().st_size / 2**20:.0f} MiB")
    if not options.twice:
        return 0
    again = rebuilt(options.image)
    print(f"image: built again, {'the same digest' if again == made.digest else f'another digest: {again}'}")
    return int(again != made.digest)


if __name__ == "__main__":
    sys.exit(main())
