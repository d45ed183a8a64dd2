"""The times and sizes that docs/failure-modes.md names are those of the code."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_api import restarts
from finetune_api.pages import Limits
from finetune_api.spec import Retry
from finetune_operator import cache_sync, decide, health, objects
from finetune_operator.diagnosis import node_avoidance, root_cause, unreachable_pods
from finetune_operator.kube import workqueue
from finetune_operator.main import parse
from finetune_operator.policies import deadline, running
from finetune_operator.state import pod_reports
from tests.support.documents import ROOT

PAGE = (ROOT / "docs" / "failure-modes.md").read_text()
SECTIONS = dict(section.split("\n", 1) for section in PAGE.split("\n## ")[1:])
WORDS = {1: "a", 2: "two", 5: "five", 8: "eight", 10: "ten"}


def minutes(span: timedelta | float) -> str:
    seconds = span.total_seconds() if isinstance(span, timedelta) else span
    count = int(seconds // 60)
    assert seconds == 60 * count
    return "a minute" if count == 1 else f"{WORDS[count]} minutes"


LEASE = parse(["--all-namespaces"], {}).lease_seconds
LONG, SHORT = restarts.COUNTED.pauses, restarts.FREE.pauses
SAID = [
    ("A process or a pod fails", f"{LONG.first} s, {2 * LONG.first} s … at most {LONG.longest // 60} minutes"),
    (
        "A process or a pod fails",
        f"after {SHORT.first} s, {2 * SHORT.first} s … at most {SHORT.longest} s",
    ),
    ("A node dies", f"its time to end is over by {minutes(unreachable_pods.PATIENCE)}"),
    ("A node dies", f"twice within an{'' if timedelta(hours=1) == node_avoidance.WINDOW else ' other'} hour"),
    ("Faults that come again and again", f"`retry.window` ({Retry().window.removesuffix('d')} days)"),
    ("Untrusted clients connect to a pod", f"at most {WORDS[Limits().each]}, all together {Limits().total}"),
    ("A pod says nonsense", f"longer than {pod_reports.LIMIT // 1024} KiB"),
    ("The operator meets an error of its own", f"after at most {minutes(workqueue.LONGEST_RETRY)}"),
    ("Too many clients scrape the operator", f"up to {health.LONGEST:.0f} seconds old"),
    ("The operator cannot reach pods", f"After {minutes(running.MUTE)} of silence"),
    ("An agent is frozen", f"every {objects.READINESS['periodSeconds']} seconds"),
    ("An agent is frozen", f"`deadlines.stall` and {minutes(deadline.MARGIN)}"),
    ("Jobs or pods are cleaned up before the operator looked", f"up to {root_cause.LATE.seconds} seconds"),
    ("A sidecar outlives the trainer", f"{decide.LINGER.seconds} seconds after the end"),
    ("etcd is restored to an earlier state", f"after {minutes(cache_sync.RESYNC_SECONDS)}"),
    (
        "The Lease is deleted or edited",
        f"{parse(['--all-namespaces'], {}).lease_seconds} seconds, or what `--lease-seconds` says",
    ),
]


@pytest.mark.parametrize(("section", "said"), SAID, ids=[said for _, said in SAID])
def test_a_figure_is_that_of_the_code(section: str, said: str) -> None:
    assert said in " ".join(SECTIONS[section].split())
