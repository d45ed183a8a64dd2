"""A real Prometheus, for as long as a test needs it: a configuration in, answers of its HTTP API out.

    operator = {"job_name": "operator", "static_configs": [{"targets": ["127.0.0.1:8080"]}]}
    server = Prometheus.start({"scrape_configs": [operator]}, folder=tmp_path, paths=Paths())
    server.wait_for('up{job="operator"} == 1')
    server.query("finetune_job_phase")       # [Sample(labels={...}, value=1.0)]

Rules are files: {"rule_files": ["/path/to/rules.yaml"]}. `check_rules` and `run_rule_tests` run promtool.
"""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import Processes, Program, run
from .state import Paths, RigError, free_ports


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One series of an instant query's answer."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """A running server on loopback."""

    url: str
    processes: Processes

    @staticmethod
    def start(config: dict[str, Any], *, folder: Path, paths: Paths) -> Prometheus:
        """Starts a server whose data lie in `folder`. It scrapes every second unless the configuration says
        otherwise."""
        folder.mkdir(parents=True, exist_ok=True)
        quick = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        text = json.dumps({**config, "global": {**quick, **config.get("global", {})}}, indent=1)
        (folder / "prometheus.yaml").write_text(text)
        url = f"http://127.0.0.1:{free_ports(1)[0]}"
        flags = {
            "config.file": str(folder / "prometheus.yaml"),
            "storage.tsdb.path": str(folder / "data"),
            "web.listen-address": url.removeprefix("http://"),
            "log.level": "warn",
        }
        argv = (str(paths.bin / "prometheus"), *(f"--{name}={value}" for name, value in flags.items()))
        program = Program(name="prometheus", argv=argv, probe=f"{url}/-/ready")
        return Prometheus(url=url, processes=Processes.of(program, state=folder, wait=120))

    def stop(self) -> None:
        self.processes.stop("prometheus")

    def query(self, expression: str) -> list[Sample]:
        """An instant query, now."""
        data = self._get("query", {"query": expression})
        if data["resultType"] != "vector":
            return [Sample(labels={}, value=float(data["result"][1]))]
        return [Sample(labels=series["metric"], value=float(series["value"][1])) for series in data["result"]]

    def wait_for(self, expression: str, *, seconds: float = 120.0) -> list[Sample]:
        """Polls until the query has an answer (a comparison without a match has none) and returns it."""
        deadline = time.monotonic() + seconds
        while not (found := self.query(expression)):
            if time.monotonic() > deadline:
                raise RigError(
                    f"Prometheus has no answer to {expression} after {seconds:.0f} s; targets: {self.targets()}"
                )
            time.sleep(0.2)
        return found

    def targets(self) -> dict[str, str]:
        """Each scraped address: "up", or what is wrong with it."""
        active = self._get("targets", {"state": "active"})["activeTargets"]
        return {target["scrapeUrl"]: target["lastError"] or target["health"] for target in active}

    def alerts(self) -> dict[str, str]:
        """Alerts that are pending or firing: name -> state."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self._get("alerts", {})["alerts"]}

    def _get(self, what: str, parameters: dict[str, str]) -> Any:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=10) as reply:
            return json.load(reply)["data"]


def check_rules(file: Path, *, paths: Paths) -> None:
    """Raises when promtool finds a mistake in a file of rules."""
    run(paths.bin / "promtool", "check", "rules", "--lint=all", "--lint-fatal", file)


def run_rule_tests(*files: Path, paths: Paths) -> None:
    """Raises when a promtool unit test of rules fails."""
    run(paths.bin / "promtool", "test", "rules", *files)
