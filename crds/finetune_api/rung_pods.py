"""FineTuneJob.spec.ladder.overrides: rungs whose pods have nodes and resources of their own.

    for_rung(spec, "full")    the spec with what `full` overrides, as its pods have it
    same_pods(spec, a, b)     whether two rungs can share an attempt
    without_rung(spec, a)     without what `a` overrides
    first_rung(spec)          of the first attempt, where the manifest says it

The pods of a rung that overrides nothing are those of the job: spec.nodes, spec.processesPerNode, spec.resources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from . import accelerators
from .base import ApiModel, Rule
from .pod import Resources

if TYPE_CHECKING:
    from .spec import FineTuneJobSpec

MethodName = Literal[
    "full", "partial", "lora", "dora", "qlora", "adapter", "ia3", "prompt", "ptuning", "prefix", "probe"
]  # fmt: skip

RungName = Annotated[str, Field(max_length=32)]
"""Of a method, perhaps one that only a newer version knows."""

_FIELDS = ("nodes", "processes_per_node", "resources")


class RungPods(ApiModel):
    """What a rung's pods have in place of the job's."""

    rung: MethodName
    nodes: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="Number of pods (one per node). Default: spec.nodes."
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Processes per pod. Default: spec.processesPerNode, where auto counts the GPUs of the rung."
    )
    resources: Resources | None = Field(
        None, description="Limits and requests of each pod, all of them. Default: spec.resources."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.nodes) || has(self.processesPerNode) || has(self.resources)",
            message="an entry of ladder.overrides needs nodes, processesPerNode or resources: set one, or remove the "
            "entry",
            holds=lambda new, _: any(field in new for field in ("nodes", "processesPerNode", "resources")),
        ),
    )


class UnavailableRung(ApiModel):
    """A rung whose pods could not be had: the ladder stops before it."""

    name: RungName
    reason: str = Field(max_length=64, description="Reason of the failure, such as StartupDeadline.")
    message: str = Field("", max_length=1024, description="What was missing.")


def without_rung(spec: FineTuneJobSpec, rung: str) -> FineTuneJobSpec:
    """The spec without the pods that a rung overrides."""
    left = tuple(each for each in spec.ladder.overrides if each.rung != rung)
    return spec.model_copy(update={"ladder": spec.ladder.model_copy(update={"overrides": left})})


def for_rung(spec: FineTuneJobSpec, rung: str | None) -> FineTuneJobSpec:
    """The same object if the rung overrides nothing."""
    own = next((each for each in spec.ladder.overrides if each.rung == rung), None)
    if own is None:
        return spec
    changes = {field: value for field in _FIELDS if (value := getattr(own, field)) is not None}
    return spec.model_copy(update=changes)


def same_pods(spec: FineTuneJobSpec, first: str | None, second: str | None) -> bool:
    one, other = for_rung(spec, first), for_rung(spec, second)
    return one is other or all(getattr(one, field) == getattr(other, field) for field in _FIELDS)


def first_rung(spec: FineTuneJobSpec) -> str | None:
    """None where a rule chooses the rungs, when the rows have been read: the first attempt then has the job's pods."""
    return spec.ladder.rungs[0] if spec.ladder.overrides and spec.ladder.rungs else None


def all_pods(spec: FineTuneJobSpec) -> tuple[FineTuneJobSpec, ...]:
    """The job's, then those of each rung that has its own."""
    return (spec, *(for_rung(spec, each.rung) for each in spec.ladder.overrides))


def describe_pods(spec: FineTuneJobSpec) -> str:
    """The pods of a spec, in words: 2 pods of 8 processes with memory: 64Gi, nvidia.com/gpu: 8."""
    pods = "1 pod" if spec.max_nodes == 1 else f"{spec.max_nodes} pods"
    pods += f" of {spec.processes} processes" if spec.processes > 1 else ""
    amounts = {**spec.resources.requests, **spec.resources.limits}
    of_each = ", ".join(f"{name}: {amount}" for name, amount in sorted(amounts.items()))
    return f"{pods} with {of_each}" if of_each else pods


def _names_planned(new: dict[str, Any]) -> bool:
    ladder = new.get("ladder") or {}
    rungs = ladder.get("rungs")
    return not rungs or all(each.get("rung") in rungs for each in ladder.get("overrides") or ())


def _counted(new: dict[str, Any]) -> bool:
    """A pod's own rule for processesPerNode, of each rung."""
    overrides = (new.get("ladder") or {}).get("overrides") or ()
    return not any(accelerators.unclear({**new, **each}) for each in overrides)


OVERRIDE_RULES = (
    Rule(
        cel="!has(self.ladder) || !has(self.ladder.overrides) || !has(self.ladder.rungs) || "
        "self.ladder.rungs.size() == 0 || self.ladder.overrides.all(each, each.rung in self.ladder.rungs)",
        message="ladder.overrides names a rung that is not in ladder.rungs: add it there, or remove the entry",
        holds=lambda new, _: _names_planned(new),
    ),
    Rule(cel="", message=f"ladder.overrides: {accelerators.ASK}", holds=lambda new, _: _counted(new)),
)
