"""The parts of the kit in order of value, each a process of its own with a time limit of its own.

Parts of one lane may run at the same time: they ask for little of the card, and nobody times them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from tests.gpu.sizes import Sizes

DEEPSPEED = "FINETUNE_GPU_KIT_DEEPSPEED"
"""The folder that DeepSpeed is in: where it is installed beside the others, PEFT imports it at every start."""


FIRST = "first"
"""The lane of the first part."""


@dataclass(frozen=True)
class Part:
    name: str
    """stage/what."""
    function: str
    """module:function below tests.gpu."""
    expected: int
    """Seconds on an H200."""
    limit: int
    lane: str = ""
    arguments: tuple[str, ...] = ()
    cpu: bool = False
    """It sees no card."""
    needs: tuple[str, ...] = ()
    """Packages without which there is nothing to do."""
    beside: tuple[str, ...] = ()
    """Variables that name folders of packages, for this part alone."""

    @property
    def stage(self) -> str:
        return self.name.partition("/")[0]


RIGHT = (
    Part("right/machine", "right:machine", 8, 40, FIRST),
    Part("right/reference", "right:reference", 45, 120, "right", cpu=True),
    Part("right/numbers", "right:numbers", 25, 90, "right"),
    Part("right/methods", "right:methods", 35, 90, "right"),
    Part("right/kernels", "fixed:kernels", 35, 90, "right"),
    Part("right/strategies", "gangs:strategies", 35, 90, "right"),
    *(
        Part(f"right/zero-{stage}", "gangs:zero", 35, 120, "right", (stage,), needs=("deepspeed",), beside=(DEEPSPEED,))
        for stage in ("2", "3")
    ),
    Part("right/failures", "failures:failures", 25, 90, "right"),
    Part("right/compiled", "right:compiled", 50, 120, "right"),
)


SIDES = ("ours", "trl", "hf", "ours-compiled")
"""In the order of their turns; every other round backwards."""

NEEDS = {"trl": ("trl", "datasets"), "hf": (), "ours": (), "ours-compiled": ()}


def parts_of(sizes: Sizes) -> tuple[Part, ...]:
    first, *others = (tuple(_fast(sizes, turn)) for turn in range(sizes.rounds))
    return (*RIGHT, *_fits(sizes), *first, TIMELINE, *(part for turn in others for part in turn))


TIMELINE = Part("time/8b-lora", "timeline:timeline", 30, 90, arguments=("8b-lora",))


def _fits(sizes: Sizes) -> Iterator[Part]:
    for name, load in sizes.loads.items():
        yield Part(f"fits/{name}", "fits:fits", 18, 60, arguments=(name,), needs=_wanted(load.method))


def _fast(sizes: Sizes, turn: int) -> Iterator[Part]:
    for name, load in sizes.loads.items():
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            if side == "ours-compiled" and load.method == "qlora":
                continue  # not compiled, see methods.needs
            seconds = 18 if load.method == "full" else 26
            needs = (*NEEDS[side], *_wanted(load.method))
            yield Part(f"fast/{name}/{side}/{turn + 1}", "fast:fast", seconds, 100, arguments=(name, side), needs=needs)


def _wanted(method: str) -> tuple[str, ...]:
    return ("bitsandbytes",) if method == "qlora" else ()


def together(parts: tuple[Part, ...], *, timed: bool) -> Iterator[tuple[Part, ...]]:
    """Neighbours of one lane; a part without a lane is alone, unless its times mean nothing."""
    for lane, group in groupby(parts, lambda part: part.lane or ("" if timed else "any")):
        members = tuple(group)
        yield from [members] if lane else ((member,) for member in members)
