"""A ladder on several nodes, without training: node 0 decides, the others run what it decided, and nothing else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import FailureClass, FinetuneError, Reason, TerminationMessage
from finetune_api.ladder import LadderStatus
from finetune_api.plan import Fold, JobIdentity, Publishes, RunPlan, Trial
from finetune_api.status import ResolvedPlan
from finetune_trainer.agent import follow, lead
from finetune_trainer.agent.climb import climb
from finetune_trainer.agent.follow import AFTER_FAILURE_SECONDS, LIMIT_SECONDS, End, Ended, Following, next_step
from finetune_trainer.agent.launch import rendezvous_of
from finetune_trainer.agent.turns import LARGEST, PRESENT, Turn, Turns, plan_of, run_of
from finetune_trainer.agent.verdict import say
from finetune_trainer.ladder.derived import of_best, of_candidate, of_fold, of_rung
from tests.support.made_rungs import Killed, Machine, job
from tests.unit.test_ladder_pod import FORECAST, METHODS, costs, job_of

DONE = TerminationMessage()
LOST, MEMORY = say(Reason.PeerLost, "lost"), say(Reason.OutOfMemory, "too large")
DIVERGED, BROKEN = say(Reason.LossNonFinite, "diverged"), say(Reason.UnexpectedError, "broken")
PUBLISHES = Publishes(uri="file:///out/lora", uid="u1-lora", ladder=LadderStatus(rule="x"))
FIRST, SECOND = Turn(number=1, method="probe"), Turn(number=2, method="lora")
PUBLISHING = Turn(number=3, method="lora", publishes=PUBLISHES)
OVER, FAILED = Turn(number=4), Turn(number=4, failed=True)


def gang_plan(folder: Path, *, attempt: int = 1, nodes: int = 2, **changes: Any) -> RunPlan:
    """As all pods of an attempt have it."""
    made = job(folder, nodes=nodes, **changes)
    identity = JobIdentity(namespace="ml", name="climber", uid=made.metadata.uid)
    secret = f"secret-{attempt}"
    return RunPlan(job=identity, attempt=attempt, nodes=nodes, spec=made.spec, token=secret, nonce=secret)


def after(turn: Turn, words: TerminationMessage) -> Ended:
    return Ended(turn=turn, words=words)


@pytest.mark.parametrize(
    ("last", "present", "waited", "expected"),
    [
        pytest.param(None, None, 0, None, id="nothing is decided"),
        pytest.param(None, FIRST, 0, FIRST, id="the first turn"),
        pytest.param(None, SECOND, 0, SECOND, id="a node that comes late takes the present turn"),
        pytest.param(after(FIRST, DONE), FIRST, 999, None, id="a turn is done once"),
        pytest.param(after(SECOND, DONE), FIRST, 999, None, id="an older decision is never followed"),
        pytest.param(after(FIRST, DONE), SECOND, 0, SECOND, id="the next turn"),
        pytest.param(after(FIRST, LOST), SECOND, 0, SECOND, id="node 0 goes on after a lost peer"),
        pytest.param(after(FIRST, MEMORY), PUBLISHING, 0, PUBLISHING, id="node 0 goes on after lack of memory"),
        pytest.param(after(FIRST, DIVERGED), SECOND, 0, SECOND, id="a rate is out of its race"),
        pytest.param(after(FIRST, BROKEN), SECOND, 0, SECOND, id="what node 0 has decided holds"),
        pytest.param(after(SECOND, DONE), OVER, 0, None, id="the end"),
        pytest.param(after(SECOND, MEMORY), OVER, 0, None, id="the end in spite of a rung that did not fit"),
        pytest.param(after(SECOND, MEMORY), FAILED, 0, Reason.OutOfMemory, id="the end because of it"),
        pytest.param(after(SECOND, DONE), FAILED, 0, None, id="another node failed"),
        pytest.param(after(PUBLISHING, DONE), PUBLISHING, 0, None, id="published"),
        pytest.param(after(PUBLISHING, BROKEN), PUBLISHING, 1, Reason.UnexpectedError, id="not published"),
        pytest.param(after(FIRST, BROKEN), FIRST, 1, Reason.UnexpectedError, id="a failure that ends an attempt"),
        pytest.param(after(FIRST, LOST), FIRST, AFTER_FAILURE_SECONDS, None, id="a lost peer waits"),
        pytest.param(after(FIRST, LOST), FIRST, AFTER_FAILURE_SECONDS + 1, Reason.PeerLost, id="not for long"),
        pytest.param(after(FIRST, DONE), FIRST, LIMIT_SECONDS + 1, Reason.PeerLost, id="nothing is decided any more"),
    ],
)
def test_what_a_node_does_next(last: Ended | None, present: Turn | None, waited: float, expected: Any) -> None:
    """Turn: runs it; a reason: ends with it; None: ends without a failure, or waits."""
    step = next_step(last, present, waited=waited)
    if isinstance(expected, Turn):
        assert step == expected
    elif isinstance(expected, Reason):
        assert isinstance(step, End)
        assert step.words.reason is expected
    else:
        ends = present is not None and (present.method is None or (present.publishes and last is not None))
        assert isinstance(step, End) is bool(ends)
        assert not isinstance(step, End) or step.words.failure_class is None


def test_every_node_derives_the_run_that_node_0_has(tmp_path: Path) -> None:
    plan = gang_plan(tmp_path)
    ladder = job_of(plan)
    lora = of_rung(ladder, "lora")
    fold = Trial(factor=0.5, fold=Fold(index=1, of=5))
    cases = [
        (lora, Turn(number=1, method="lora")),
        (of_candidate(lora, 0.33), Turn(number=2, method="lora", trial=Trial(factor=0.33, until=0.1))),
        (of_candidate(lora, 0.33), Turn(number=3, method="lora", trial=Trial(factor=0.33))),
        (of_fold(lora, 1, 5), Turn(number=4, method="lora", trial=fold)),
        (of_best(ladder, "lora"), Turn(number=5, method="lora", publishes=PUBLISHES, trial=Trial(factor=0.33))),
    ]
    for made, turn in cases:
        found = run_of(ladder, turn)
        assert (found.metadata.uid, found.spec) == (made.metadata.uid, made.spec)
        assert plan_of(plan, found, turn) == plan_of(plan, made, turn)
    assert [plan_of(plan, made, turn).rung for made, turn in cases] == [*["lora"] * 4, None]


def test_a_record_counts_only_as_its_own_attempt_wrote_it(tmp_path: Path) -> None:
    earlier, now = (Turns.of(gang_plan(tmp_path, attempt=number)) for number in (1, 2))
    earlier.announce(SECOND)
    assert now.present() is None, "an earlier attempt decided it"
    now.announce(FIRST)
    assert (earlier.present(), now.present()) == (None, FIRST)
    file = Path(now.folder.uri.removeprefix("file://")) / PRESENT
    content = file.read_bytes()
    for other in (content.replace(b"probe", b"lora"), content[:-1], b"", b"{}", content + b" " * LARGEST):
        file.write_bytes(other)
        assert now.present() is None
    file.write_bytes(content)
    assert now.present() == FIRST
    assert b"secret" not in content


def test_a_report_is_of_one_turn_and_one_node(tmp_path: Path) -> None:
    turns = Turns.of(gang_plan(tmp_path, nodes=3))
    for node in (1, 2):
        turns.report(2, MEMORY.model_copy(update={"node": node}))
    assert [each.node for each in turns.reports(2)] == [1, 2]
    assert (turns.reports(1), turns.reports(20)) == ([], [])


@dataclass
class Pods:
    """The pods of one attempt, as threads. A rung runs on all of them or on none. As its Job does, an attempt asks the
    others to stop once one has died."""

    plan: RunPlan
    machine: Machine
    killed_before: tuple[int, int] | None = None
    """(node, turn): dies without a word when it knows the turn and has not begun it."""
    fails: dict[tuple[int, str], TerminationMessage] = field(default_factory=dict)
    """(node, method): how its part of that rung ends. The others hang."""
    slow: dict[int, float] = field(default_factory=dict)
    """Seconds that a node takes before it begins a run."""
    ran: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    """Turn and method of each node's runs."""
    words: dict[int, TerminationMessage] = field(default_factory=dict)
    dead: threading.Event = field(default_factory=threading.Event)
    ready: dict[int, set[int]] = field(default_factory=dict)
    ended: dict[int, TerminationMessage] = field(default_factory=dict)

    def to_the_end(self) -> dict[int, TerminationMessage]:
        threads = [threading.Thread(target=self._pod, args=(node,), daemon=True) for node in range(self.plan.nodes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a pod hangs"
        return self.words

    def _pod(self, node: int) -> None:
        def run(plan: RunPlan, withdrawn: Callable[[], str]) -> TerminationMessage:
            return self._run(node, plan, withdrawn)

        try:
            if node == 0:
                words = climb(
                    self.plan, foreseen=FORECAST, run=run, tell=lambda _: None, show=lambda _: None,
                    stopped=self.dead.is_set,
                )  # fmt: skip
            else:
                asked = lambda: say(Reason.Interrupted, "asked to stop") if self.dead.is_set() else None  # noqa: E731
                words = Following(
                    plan=self.plan, node=node, turns=Turns.of(self.plan), run=run, tell=lambda _: None, stopped=asked
                ).to_the_end()
            self.words[node] = words
        except Killed:
            self.dead.set()

    def _run(self, node: int, plan: RunPlan, withdrawn: Callable[[], str]) -> TerminationMessage:
        turn, method = plan.turn or 0, str(plan.spec.method.type)
        if self.killed_before == (node, turn):
            raise Killed
        time.sleep(self.slow.get(node, 0))
        self.ran.setdefault(node, []).append((turn, method))
        if plan.publishes is None and (failure := self.fails.get((node, method))):
            return failure.model_copy(update={"node": node})
        self.ready.setdefault(turn, set()).add(node)
        while turn not in self.ended:
            if self.dead.is_set() or withdrawn():
                return say(Reason.PeerLost, withdrawn() or "lost").model_copy(update={"node": node})
            if node == 0 and len(self.ready[turn]) == self.plan.nodes:
                self.ended[turn] = self.machine.run_one(
                    job_of(plan), rung=plan.rung, publishes=plan.publishes, trial=plan.trial
                )[1]
            time.sleep(0.002)
        return self.ended[turn] if node == 0 else DONE


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (follow, lead):
        monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(follow, "READS_PER_SECOND", 10_000)
    monkeypatch.setattr(follow, "WAIT_SECONDS", 0.005)


def machine() -> Machine:
    return Machine({"probe": 0.6, "lora": 0.8, "full": 0.8})


def test_all_nodes_run_what_node_0_decides(tmp_path: Path) -> None:
    pods = Pods(plan=gang_plan(tmp_path, nodes=3), machine=machine(), slow={2: 0.1})
    words = pods.to_the_end()
    assert {node: each.failure_class for node, each in words.items()} == dict.fromkeys(range(3))
    assert pods.ran[0] == [(1, "probe"), (2, "lora"), (3, "full"), (4, "lora")]
    assert pods.ran[0] == pods.ran[1] == pods.ran[2]
    assert words[0].artifact is not None


def test_without_a_gain_only_node_0_fails(tmp_path: Path) -> None:
    words = Pods(plan=gang_plan(tmp_path), machine=Machine(dict.fromkeys(METHODS, 0.5))).to_the_end()
    assert (words[0].reason, words[1].failure_class) == (Reason.NoGain, None)


def test_nodes_end_together_where_the_ladder_continues_in_other_pods(tmp_path: Path) -> None:
    ladder = {"rungs": list(METHODS), "overrides": [{"rung": "lora", "nodes": 4}]}
    words = Pods(plan=gang_plan(tmp_path, ladder=ladder), machine=machine()).to_the_end()
    assert (words[0].next_rung, words[1].failure_class, words[1].next_rung) == ("lora", None, None)


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("turn", [1, 2, 3, 4])
def test_a_pod_that_is_killed_between_the_decision_and_its_run_costs_an_attempt_and_no_rung(
    node: int, turn: int, tmp_path: Path
) -> None:
    """Node 0 dies after it has written the decision; node 1 after it has read it."""
    same = machine()
    first = Pods(plan=gang_plan(tmp_path), machine=same, killed_before=(node, turn))
    assert set(first.to_the_end()) == {1 - node}
    assert first.words[1 - node].failure_class is not None
    before = costs(tmp_path)
    second = Pods(plan=gang_plan(tmp_path, attempt=2), machine=same)
    words = second.to_the_end()
    assert (words[0].failure_class, words[1].failure_class) == (None, None)
    assert same.trained == list(METHODS)
    assert second.ran[0] == second.ran[1] == [(1 + n, m) for n, m in enumerate([*METHODS, "lora"][turn - 1 :])]
    committed = METHODS[: turn - 1]
    assert {name: costs(tmp_path)[name] for name in committed} == {name: before[name] for name in committed}


@pytest.mark.parametrize("told", [say(Reason.Interrupted, "SIGTERM"), LOST])
def test_pods_of_an_attempt_that_was_preempted_do_not_take_its_end_for_theirs(
    told: TerminationMessage, tmp_path: Path
) -> None:
    """The queue lets the same Job go again: its new pods have the secrets of those before."""
    plan, asked = gang_plan(tmp_path), threading.Event()

    def run(turn: RunPlan, withdrawn: Callable[[], str]) -> TerminationMessage:
        assert (turn.turn, withdrawn()) == (1, "")
        asked.set()
        return told

    words = climb(plan, foreseen=FORECAST, run=run, tell=lambda _: None, show=lambda _: None, stopped=asked.is_set)
    assert words.reason is told.reason
    assert not isinstance(next_step(None, Turns.of(plan).present(), waited=0), End)
    again = Pods(plan=plan, machine=machine()).to_the_end()
    assert {node: each.failure_class for node, each in again.items()} == dict.fromkeys(range(2))


@pytest.mark.parametrize("node", [0, 2])
def test_a_rung_that_does_not_fit_on_one_node_ends_the_ladder_and_the_best_is_published(
    node: int, tmp_path: Path
) -> None:
    """The others would wait for it without end: they hear of it, and end their own part."""
    failure = say(Reason.InsufficientMemory, "too large")
    pods = Pods(plan=gang_plan(tmp_path, nodes=3), machine=machine(), fails={(node, "full"): failure})
    words = pods.to_the_end()
    assert {node: each.failure_class for node, each in words.items()} == dict.fromkeys(range(3))
    assert words[0].ladder is not None
    assert (words[0].ladder.best, words[0].ladder.stop_reason) == ("lora", "memory")
    assert pods.ran[1][-1] == pods.ran[2][-1] == (4, "lora")


def test_a_failure_that_ends_the_attempt_is_told_by_the_node_that_has_its_cause(tmp_path: Path) -> None:
    words = Pods(plan=gang_plan(tmp_path), machine=machine(), fails={(1, "lora"): BROKEN}).to_the_end()
    assert (words[1].reason, words[1].node) == (Reason.UnexpectedError, 1)
    assert (words[0].failure_class, words[0].node) == (FailureClass.PeerLost, 0)


def test_node_0_tells_the_plan_of_a_run_that_failed_on_another_node(tmp_path: Path) -> None:
    """The operator makes the micro-batch smaller than the plan says, and only node 0 knows the plan."""
    plan, known = gang_plan(tmp_path), {"plan": ResolvedPlan(micro_batch_tokens=64), "step": 3, "checkpoint_time": "t"}

    def run(turn: RunPlan, _: Callable[[], str]) -> TerminationMessage:
        Turns.of(plan).report(turn.turn or 0, MEMORY.model_copy(update={"node": 1}))
        return LOST.model_copy(update={"node": 0, **known})

    words = climb(plan, foreseen=FORECAST, run=run, tell=lambda _: None, show=lambda _: None)
    assert words.reason is Reason.PeerLost
    assert {name: getattr(words, name) for name in known} == known


def test_a_rate_that_diverges_on_another_node_is_out_of_its_race(tmp_path: Path) -> None:
    one = machine()
    one.losses = {1.0: 2.0, 0.33: 1.0}
    ladder = {"rungs": ["lora"], "learningRates": [1, 0.33]}
    pods = Pods(plan=gang_plan(tmp_path, ladder=ladder), machine=one)
    whole = pods._run

    def run(node: int, plan: RunPlan, withdrawn: Callable[[], str]) -> TerminationMessage:
        if node == 1 and plan.rung == "lora" and plan.trial and plan.trial.factor == 1:
            pods.ran.setdefault(1, []).append((plan.turn or 0, "lora"))
            return DIVERGED.model_copy(update={"node": 1})
        return whole(node, plan, withdrawn)

    pods._run = run  # type: ignore[method-assign]
    words = pods.to_the_end()
    assert (words[0].failure_class, words[1].failure_class) == (None, None)
    assert one.factors == [0.33]


def test_a_node_waits_for_a_store_that_is_away_and_ends_where_its_keys_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follows(*reasons: Reason) -> TerminationMessage:
        left = list(reasons)

        def present(_: Turns) -> Turn | None:
            if not left:
                return OVER
            raise FinetuneError(left.pop(0), "no")

        monkeypatch.setattr(Turns, "present", present)
        following = Following(
            plan=plan, node=1, turns=Turns.of(plan), run=lambda *_: DONE, tell=lambda _: None, stopped=lambda: None
        )
        return following.to_the_end()

    plan = gang_plan(tmp_path)
    assert follows(Reason.StorageUnavailable, Reason.StorageUnavailable).failure_class is None
    words = follows(Reason.CredentialsRejected)
    assert (words.reason, words.node) == (Reason.CredentialsRejected, 1)


@pytest.mark.parametrize(("words", "reason"), [(DONE, None), (BROKEN, Reason.UnexpectedError), (LOST, Reason.PeerLost)])
def test_a_node_that_is_asked_to_stop_after_its_last_run_ends_as_that_did(
    words: TerminationMessage, reason: Reason | None, tmp_path: Path
) -> None:
    turns, asked = Turns.of(gang_plan(tmp_path)), threading.Event()
    turns.announce(PUBLISHING)

    def run(_: RunPlan, withdrawn: Callable[[], str]) -> TerminationMessage:
        assert not withdrawn()
        asked.set()
        return words

    following = Following(
        plan=turns.plan, node=1, turns=turns, run=run, tell=lambda _: None,
        stopped=lambda: say(Reason.Interrupted, "asked to stop") if asked.is_set() else None,
    )  # fmt: skip
    assert following.to_the_end().reason is reason


def test_ranks_of_two_turns_never_meet(tmp_path: Path) -> None:
    """Also of two legs of a race, whose runs have one UID."""
    plan = gang_plan(tmp_path)
    turns = [Turn(number=number, method="lora", trial=Trial(until=0.1 * number)) for number in (1, 2)]
    assert len({rendezvous_of(plan_of(plan, run_of(job_of(plan), turn), turn)) for turn in turns}) == 2


def test_one_node_writes_no_turns(tmp_path: Path) -> None:
    words = Pods(plan=gang_plan(tmp_path, nodes=1), machine=machine()).to_the_end()
    assert words[0].artifact is not None
    assert not list((tmp_path / "out" / ".finetune").rglob("turns"))
    assert json.loads(words[0].model_dump_json(by_alias=True))["exitCode"] == 0
