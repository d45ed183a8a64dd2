"""`finetune switch-test ARTIFACT…`: adapters of several artifacts in one network, as a server holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.switching import Latency, SwitchTest
from finetune_trainer.cli.compare import uri_of
from finetune_trainer.cli.jobs import Where
from finetune_trainer.cli.text import aligned
from finetune_trainer.store.models import resolve_model
from finetune_trainer.switching.artifacts import Found, base_in_memory, find_all, rank_bound
from finetune_trainer.switching.files import check, rank_of


@dataclass(frozen=True, kw_only=True)
class Request:
    """targets: URIs, folders or names of jobs. largest_rank: the server's; None: the smallest that vLLM takes and all
    fit in."""

    targets: Sequence[str]
    largest_rank: int | None
    switches: int
    as_json: bool


def show_switch_test(request: Request, where: Where) -> int:
    """Prints the outcome. Exit status 65 if an adapter gives something else with the others than alone; FinetuneError
    for one that the server would not load."""
    if request.switches < 1 or (request.largest_rank is not None and request.largest_rank < 1):
        raise FinetuneError(Reason.InvalidSpec, "--switches and --max-rank must be at least 1", "Leave them out.")
    cache = where.home.absolute() / "cache"
    found = find_all([uri_of(target, where) for target in request.targets], cache=cache)
    adapters = [each.adapter for each in found]
    local = resolve_model(found[0].base, cache=cache)
    bound = request.largest_rank or rank_bound(adapters)
    base = base_in_memory(local)
    for adapter in adapters:  # before the weights of the base are read
        check(adapter, base, largest_rank=bound)

    from finetune_trainer.cli.chat import network_in
    from finetune_trainer.switching.pool import shapes_of
    from finetune_trainer.switching.protocol import switch_test

    _quiet()
    network = network_in(found[0].record, local.path)
    outcome = switch_test(
        network, base_in_memory(local, shapes_of(network)), adapters, largest_rank=bound, switches=request.switches
    )
    if request.as_json:
        listed = [{"name": each.adapter.name, "uri": each.uri, "rank": rank_of(each.adapter)} for each in found]
        told = {"base": base.name, "maxRank": bound, "adapters": listed, "result": outcome.to_json()}
        print(json.dumps(told, indent=2))
    else:
        print(_text(base.name, bound, found, outcome))
    return ExitCode.OK if outcome.verdict == "passed" else ExitCode.DATA


def _quiet() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _text(base: str, bound: int, found: Sequence[Found], outcome: SwitchTest) -> str:
    rows = [("base", base)]
    rows += [(f"adapter {each.adapter.name}", f"rank {rank_of(each.adapter)}, {each.uri}") for each in found]
    rows += [("maximum rank", str(bound)), ("switches", f"{outcome.switches:,}")]
    if outcome.largest_difference is not None:
        rows.append(("difference", f"{outcome.largest_difference:.3g}, the largest of a logit from the adapter alone"))
    rows.append(("refused", f"{outcome.refused} damaged copies of {found[0].adapter.name}"))
    rows += [
        (f"time to {name}", _milliseconds(each))
        for name, each in (("load", outcome.load), ("switch", outcome.switch), ("merge", outcome.merge))
        if each is not None
    ]
    verdict = outcome.verdict if not outcome.reason else f"{outcome.verdict}: {outcome.reason}"
    return aligned([*rows, ("verdict", verdict)], indent="")


def _milliseconds(found: Latency) -> str:
    return f"{found.median:.3g} ms, 95th percentile {found.p95:.3g} ms"
