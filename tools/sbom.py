"""A software bill of materials (CycloneDX 1.6, JSON) of what an image installs, from the lock file.

    python tools/sbom.py operator > operator.cdx.json
    python tools/sbom.py operator --debian /var/lib/dpkg/status     with the Debian packages of the base, in a build

The same lock file gives the same bytes: no time and no random number is in it. Licences are those of the packages'
metadata, where the packages are installed."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the Dockerfile runs it as a file

from tools.audit import installed, locked
from tools.image_lock import LOCK, ROOT, packages, part


def bill(image: str, lock: str, licences: Mapping[str, str], *, debian: Mapping[str, str] | None = None) -> str:
    """The document's text. `lock`: the part of the lock file that the image installs. `debian`: versions of Debian
    packages in it, by name."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    components = [_python(name, number, licences.get(name, "")) for name, number in locked(lock)]
    components += [_debian(name, number) for name, number in (debian or {}).items()]
    components.sort(key=lambda each: str(each["bom-ref"]))
    name, digest = f"finetune-{image}", hashlib.sha256(lock.encode()).hexdigest()
    made: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": "urn:uuid:" + str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([image, version, components]))),
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": name, "name": name, "version": version},
            "properties": [{"name": "finetune.dev:lock-sha256", "value": digest}],
        },
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": [each["bom-ref"] for each in components]}],
    }
    return json.dumps(made, indent=1) + "\n"


def debian(status: str) -> dict[str, str]:
    """Versions of the packages in a file such as /var/lib/dpkg/status, less those that were removed."""
    found = {}
    for each in re.split(r"\n\n+", status):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", each, re.MULTILINE))
        if {"Package", "Version"} <= {*fields} and not fields.get("Status", "").endswith(
            (" config-files", " not-installed")
        ):
            found[fields["Package"]] = fields["Version"]
    return found


def _python(name: str, version: str, licence: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}"
    found: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return found | ({"licenses": [{"license": {"name": licence}}]} if licence else {})


def _debian(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A').replace('~', '%7E')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prints the CycloneDX bill of materials of an image.")
    parser.add_argument("image", choices=sorted({*packages()} - {"build"}))
    parser.add_argument("--debian", type=Path, metavar="STATUS", help="dpkg's list of packages; need not exist")
    options = parser.parse_args(arguments)
    names = packages()[options.image]
    status = options.debian.read_text() if options.debian and options.debian.exists() else ""
    sys.stdout.write(bill(options.image, part(LOCK.read_text(), names), installed(names), debian=debian(status)))


if __name__ == "__main__":
    main()
