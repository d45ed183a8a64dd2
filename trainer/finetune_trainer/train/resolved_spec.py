"""The spec that ran: the manifest's, with what it left open and what model, data or attempt changed of it."""

from __future__ import annotations

from typing import Any, get_args

from finetune_api import uris
from finetune_api.methods import Method
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ResolvedPlan
from finetune_api.strategy import Strategy
from finetune_trainer.transfer.evaluate import Layout

from .loop import Course


def resolve_spec(
    spec: FineTuneJobSpec,
    *,
    resolved: ResolvedPlan,
    course: Course,
    layout: Layout,
    data_format: str,
    processes_per_node: int,
    hidden_size: int,
) -> FineTuneJobSpec:
    """`spec`: that of the attempt, with the fitted sequence length and the method's settled layers."""
    training: dict[str, Any] = {"precision": resolved.precision, "micro_batch_tokens": resolved.micro_batch_tokens}
    if spec.method.traits.steps:  # it makes no steps
        training |= {"learning_rate": course.peak_rate, "evaluate_every": course.evaluate_every}
    data: dict[str, Any] = {"format": data_format, "packing": layout.packing}
    model = {"revision": resolved.model_revision} if uris.parse(spec.model.uri).scheme == "hf" else {}
    strategy = resolved.strategy if resolved.strategy in get_args(Strategy.model_fields["type"].annotation) else "ddp"
    return spec.model_copy(
        update={
            "given_model": spec.model.model_copy(update=model),
            "given_data": spec.data.model_copy(update=data),
            "method": _method(spec.method, hidden_size),
            "training": spec.training.model_copy(update=training),
            "strategy": spec.strategy.model_copy(update={"type": strategy}),
            "processes_per_node": processes_per_node,
        }
    )


def _method(method: Method, hidden_size: int) -> Method:
    settings = method.settings
    filled = settings.filled(hidden_size=hidden_size) if settings else None
    return method if filled is None or filled == settings else method.changed(filled)
