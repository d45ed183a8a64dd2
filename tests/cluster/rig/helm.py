"""The real Helm, for the chart: what it renders, and what it installs. Helm 4, and Helm 3 to compare with."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .process import bare_environment
from .state import Paths, RigError

Objects = dict[str, dict[str, Any]]
"""`Kind/name`, or `Kind/namespace/name` where the chart puts objects of one name into several namespaces."""


@dataclass(frozen=True, kw_only=True)
class Helm:
    """`kubeconfig`: whose rights it uses. Its own files stay below `home`."""

    binary: Path
    home: Path
    kubeconfig: Path | None = None

    @staticmethod
    def at(home: Path, *, kubeconfig: Path | None = None, program: str = "helm") -> Helm:
        return Helm(binary=Paths().bin / program, home=home, kubeconfig=kubeconfig)

    def __call__(self, *words: str | Path) -> str:
        """What it printed; RigError with its error output when it fails."""
        folders = {f"HELM_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        env = {**bare_environment(), **folders, "KUBECONFIG": str(self.kubeconfig or os.devnull)}
        argv = [str(word) for word in (self.binary, *words)]
        done = subprocess.run(argv, text=True, capture_output=True, timeout=300, env=env, check=False)
        if done.returncode:
            raise RigError(f"helm {' '.join(argv[1:])[:200]}: {(done.stderr or done.stdout).strip()[-3000:]}")
        return done.stdout

    def render(self, chart: Path, *words: str | Path, release: str = "finetune-operator") -> Objects:
        """Objects of `helm template`, less those of `helm test`, in the namespace finetune-operator. ValueError if two
        have the same name."""
        text = self("template", release, chart, "-n", "finetune-operator", "--skip-tests", *words)
        found: Objects = {}
        for one in filter(None, yaml.safe_load_all(text)):
            namespace = one["metadata"].get("namespace", "")
            where = f"{namespace}/" if namespace not in ("", "finetune-operator") else ""
            key = f"{one['kind']}/{where}{one['metadata']['name']}"
            if key in found:
                raise ValueError(f"the chart renders {key} twice")
            found[key] = one
        return found
