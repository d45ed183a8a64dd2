"""`make audit`: known vulnerabilities and the licences of the packages in requirements.lock.

Vulnerabilities come from an OSV-compatible service ($FINETUNE_ADVISORIES, by default the public one), in one request.
If it cannot be reached, that part is skipped and named. Licences come from the metadata of what is installed here.
Exit status 1: a known vulnerability, or a licence that is neither permissive nor in `ALLOWED`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
SERVICE = "https://api.osv.dev"
SECONDS = 20.0

PERMISSIVE = re.compile(
    r"(MIT|Apache|BSD|0BSD|ISC|Zlib|PSF|Python Software Foundation|CNRI|MPL|Mozilla|CC0|BSL-1\.0|Unlicense|HPND"
    r"|DFSG approved)"
)
ALLOWED = {
    "nvidia": "CUDA libraries, which torch's wheels ask for; redistributable under NVIDIA's terms",
    "cuda-toolkit": "only names the versions of these libraries that belong together; it holds no code",
}
"""Beginnings of names of packages with another licence, and why they are allowed."""

Locked = tuple[tuple[str, str], ...]
"""Names and versions. A package may be there twice: markers choose."""


def locked(text: str) -> Locked:
    """What a lock file pins."""
    return tuple(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", text, re.MULTILINE))


def licence_of(found: PackageMetadata) -> str:
    """In the words of the package: the expression, the classifiers, or the first line of the old field."""
    if expression := found.get("License-Expression"):
        return str(expression)
    classifiers = [each for each in found.get_all("Classifier") or () if each.startswith("License ::")]
    if classifiers:
        return "; ".join(each.rpartition(" :: ")[2] for each in classifiers)
    return str(found.get("License") or "").strip().partition("\n")[0][:60]


def objections(licences: Mapping[str, str]) -> list[str]:
    """Packages whose licence is not permissive, and not allowed by name. An unknown licence is one, too."""
    return [
        f"{name}: {licence or 'no licence in its metadata'}"
        for name, licence in sorted(licences.items())
        if not _permissive(licence) and not name.startswith(tuple(ALLOWED))
    ]


def _permissive(licence: str) -> bool:
    """All parts that are joined by AND, or one of those joined by OR."""
    parts = re.split(r"\s+AND\s+|;", licence)
    return bool(licence) and all(PERMISSIVE.search(part) for part in parts)


def query(packages: Locked) -> bytes:
    """The body of one request for all packages."""
    asked = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages]
    return json.dumps({"queries": asked}).encode()


def vulnerabilities(packages: Locked, answer: bytes) -> list[str]:
    """`name version: identifiers` for each package with any. ValueError if this does not answer `query(packages)`."""
    told = json.loads(answer)
    results = told.get("results") if isinstance(told, dict) else None
    if not isinstance(results, list) or len(results) != len(packages):
        raise ValueError("the answer does not have one result for each package")
    found = []
    for (name, version), result in zip(packages, results, strict=True):
        if known := [str(each["id"]) for each in (result or {}).get("vulns") or ()]:
            found.append(f"{name} {version}: {', '.join(sorted(known))}")
    return found


def ask(packages: Locked, service: str) -> bytes:
    """OSError if the service cannot be reached, or refuses."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{service.rstrip('/')}/v1/querybatch", query(packages), headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        body: bytes = response.read()
    return body


def installed(names: Iterable[str]) -> dict[str, str]:
    """Licences of the packages that are installed here."""
    found = {}
    for name in names:
        try:
            found[name] = licence_of(metadata(name))
        except PackageNotFoundError:
            continue
    return found


def main() -> int:
    argparse.ArgumentParser(prog="tools/audit.py", description=__doc__.partition("\n")[0]).parse_args()
    packages = locked(LOCK.read_text())
    licences = installed(name for name, _ in packages)
    for name, version in packages:
        print(f"{name} {version}: {licences.get(name, 'not installed here')}")
    bad = objections(licences)
    service = os.environ.get("FINETUNE_ADVISORIES") or SERVICE
    try:
        known = vulnerabilities(packages, ask(packages, service))
        said = f"{len(known)} packages with known vulnerabilities"
    except (OSError, ValueError, urllib.error.URLError) as error:
        known, said = [], f"vulnerabilities skipped, {service} does not answer: {error}"
    print(*(f"vulnerable: {each}" for each in known), *(f"licence: {each}" for each in bad), sep="\n")
    print(f"audit: {len(packages)} packages; {len(licences)} licences, {len(bad)} objections; {said}")
    return int(bool(known or bad))


if __name__ == "__main__":
    sys.exit(main())
