"""Random histories: whatever happens to the pods, however often the operator dies, these hold.

The little cluster is meaner than a real one: pods fail at any time, deletions take as long as they like, people
suspend, resume and delete Jobs, and the operator may die after any write of a decision. Elastic jobs live in one whose
nodes come and go.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.status import Phase
from finetune_operator.state.status import terminal
from tests.support.stepwise_cluster import LIMIT, RANGE, REASONS, World

STEPS = st.one_of(
    st.just(("look",)),
    st.tuples(st.just("look"), st.integers(0, 4)),
    st.just(("job_controller",)),
    st.just(("garbage_collector",)),
    st.just(("kubelet", None)),
    st.tuples(st.just("kubelet"), st.sampled_from(REASONS)),
    st.just(("succeed",)),
    st.just(("goes_up",)),
    st.just(("goes_up",)),
    st.tuples(st.just("breaks_down"), st.sampled_from(REASONS)),
    st.just(("is_cleared",)),
    st.just(("is_cleared",)),
    st.tuples(st.just("suspend"), st.booleans()),
    st.tuples(st.just("queue"), st.booleans()),
    st.just(("somebody_deletes_the_job",)),
    st.just(("falls_silent",)),
    st.just(("loses_one_for_good",)),
    st.just(("is_cut_off",)),
    st.just(("dead_nodes_go",)),
    st.tuples(st.just("time"), st.sampled_from([1, 10, 100, 500])),
)

ELASTIC_STEPS = st.one_of(
    STEPS,
    st.tuples(st.just("scheduler"), st.integers(0, 4)),
    st.tuples(st.just("scheduler"), st.integers(0, 4)),
    st.just(("node_goes",)),
    st.just(("runs_short_of_nodes",)),
    st.just(("runs_short_of_nodes",)),
    st.just(("finds_more_nodes",)),
    st.just(("finds_more_nodes",)),
    st.tuples(st.just("time"), st.sampled_from([70, 400, 4000])),
)


def settle(world: World) -> None:
    """The operator looks, and the cluster does what was asked of it, until nothing changes."""
    world.dead_nodes_go()
    quiet = 0
    for _ in range(80):
        world.time(100)
        quiet = 0 if world.look() else quiet + 1
        world.job_controller()
        if world.places is not None:
            world.scheduler(world.places)
        world.garbage_collector()
        if quiet > 1 and not any(c.deleting for c in world.children.values()):
            return


@settings(max_examples=400)
@given(st.lists(STEPS, max_size=60), st.sampled_from([{}, {}, {"startup": "50s"}, {"active": "5m"}]))
def test_whatever_happens(history: list[tuple[str, object]], deadlines: dict[str, str]) -> None:
    world = World(deadlines=deadlines)
    live(world, history)


@settings(max_examples=400)
@given(st.lists(ELASTIC_STEPS, max_size=60), st.integers(0, 4), st.sampled_from([{}, {"startup": "50s"}]))
def test_nodes_come_and_go(history: list[tuple[str, object]], places: int, deadlines: dict[str, str]) -> None:
    world = World(deadlines=deadlines, places=places)
    live(world, history)
    sizes = [status.nodes for status in world.written if status.attempt]
    assert all(RANGE["min"] <= (nodes or 0) <= RANGE["max"] for nodes in sizes), "the size is within the range"
    if world.view.status.phase is not Phase.Running:
        assert not any(not probe.deleting for probe in world.probes.values()), "only what runs looks for more"


def live(world: World, history: list[tuple[str, object]]) -> None:
    """And hold to what holds for all."""
    for name, *args in history:
        getattr(world, name)(*args)

        assert len(world.at_work()) <= 1, f"two attempts run at once: {world.at_work()}"

    settle(world)
    said = [status for status in world.written if status.attempt]
    numbers = [status.attempt or 0 for status in said]
    assert numbers == sorted(numbers), "attempts only go up"
    assert all(s.restarts is not None and s.restarts.counted <= LIMIT for s in said), "the budget holds"
    assert all(s.attempt == 1 + s.restarts.total for s in said if s.restarts), "each is accounted for"
    ends = [index for index, status in enumerate(world.written) if terminal(status)]
    assert ends in ([], [len(world.written) - 1]), "nothing is written after the end"

    writes = sum(world.look() for _ in range(3))
    assert writes == 0, "at rest, nothing is written"
    present = world.view.status
    if present.phase in (Phase.Pending, Phase.Running, Phase.Starting, Phase.Restarting, Phase.Queued):
        assert present.attempt in world.children, "a job that goes on has its Job"
    if present.phase is Phase.Suspended:
        assert not world.children, "a suspended job has none"
