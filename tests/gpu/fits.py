"""Whether a run takes the memory that the plan says: the largest reserved by torch's allocator, beside the plan."""

from __future__ import annotations

from tests.gpu.kit import Kit
from tests.gpu.memory import begin_peak, peaks
from tests.gpu.workshop import Drive, prepared

_STEPS = 3


def fits(kit: Kit, name: str) -> None:
    import torch

    from finetune_api.methods import Method
    from finetune_trainer.planning.memory import estimate
    from finetune_trainer.planning.model import read_shape

    load = kit.sizes.loads[name]
    folder = prepared(kit.folder(name), load, steps=_STEPS)
    planned = estimate(
        read_shape(folder / "model"),
        Method.model_validate({"type": load.method}),
        precision="bfloat16",
        device="cuda" if kit.on_gpu else "cpu",
        tokens=load.tokens,
        row=load.row,
    )

    def watch(step: int) -> None:
        if step == 0:
            begin_peak(kit.device)

    drive = Drive(load, folder, kit.device, _STEPS, watch)
    drive.go()
    reserved, allocated = peaks(kit.device)
    kit.notes.fact("title", load.title)
    kit.notes.fact("tokens", load.tokens)
    kit.notes.fact("computed", drive.computed)
    kit.notes.fact("parts", {
        "weights": planned.weights, "optimizer": planned.optimizer, "activations": planned.activations,
        "loss": planned.loss, "runtime": planned.runtime,
    })  # fmt: skip
    kit.notes.fact("planned", planned.total - planned.runtime)
    kit.notes.fact("allocated", allocated)
    if kit.on_gpu:
        free, total = torch.cuda.mem_get_info(kit.device)
        kit.notes.fact("taken_from_the_card", total - free)
        kit.notes.fact("planned_of_the_card", planned.total)
    kit.notes.fact("reserved", reserved)
