"""Options of the commands that use an artifact: `chat`, `serve-manifest` and `switch-test`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

SERVERS = ("vllm", "kserve", "dynamo")


def add_commands(commands: Any, cluster_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds them to the subparsers."""
    serve = commands.add_parser("serve-manifest", help="print what a server reads to serve an artifact")
    serve.add_argument("artifact", metavar="ARTIFACT", help="URI, folder or name of a job")
    serve.add_argument("--for", dest="server", choices=SERVERS, required=True, help="server")
    serve.add_argument("--merged", action="store_true", help="serve the merged model rather than the adapter")
    cluster_options(serve)
    serve.set_defaults(handler=_serve)
    switched = commands.add_parser("switch-test", help="test LoRA adapters of several artifacts on one base model")
    switched.add_argument("artifacts", metavar="ARTIFACT", nargs="+", help="URI, folder or name of a job")
    switched.add_argument(
        "--max-rank",
        type=int,
        metavar="N",
        help="largest rank that the server takes (default: what vLLM needs for all)",
    )
    switched.add_argument("--switches", type=int, default=200, metavar="N", help="number of switches (default: 200)")
    switched.add_argument("-o", "--output", choices=("text", "json"), default="text")
    cluster_options(switched)
    switched.set_defaults(handler=_switch)
    chat = commands.add_parser("chat", help="compare the answers of base and tuned model to a prompt")
    chat.add_argument("artifact", metavar="ARTIFACT", help="URI, folder or name of a job")
    chat.add_argument("--prompt", metavar="TEXT", help="answer this prompt, and exit (default: read prompts)")
    chat.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="length of an answer (default: 256)")
    chat.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0: always the most probable token (default: 0)"
    )
    chat.add_argument("--seed", type=int, default=1, metavar="N", help="seed for a temperature above 0 (default: 1)")
    chat.add_argument("--raw", action="store_true", help="use the prompt as it is, without a chat template")
    chat.add_argument("-o", "--output", choices=("text", "json"), default="text")
    cluster_options(chat)
    chat.set_defaults(handler=_chat)


def _serve(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.jobs import Where
    from finetune_trainer.cli.serving import serve_manifest

    where = Where(home=options.home, namespace=options.namespace, context=options.context)
    return serve_manifest(options.artifact, where, server=options.server, whole=options.merged)


def _switch(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.jobs import Where
    from finetune_trainer.cli.switching import Request, show_switch_test

    request = Request(
        targets=options.artifacts, largest_rank=options.max_rank, switches=options.switches,
        as_json=options.output == "json",
    )  # fmt: skip
    where = Where(home=options.home, namespace=options.namespace, context=options.context)
    return show_switch_test(request, where)


def _chat(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.chat import Wish, chat
    from finetune_trainer.cli.jobs import Where

    wish = Wish(
        prompt=options.prompt, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
        seed=options.seed, raw=options.raw, as_json=options.output == "json",
    )  # fmt: skip
    where = Where(home=options.home, namespace=options.namespace, context=options.context)
    return chat(options.artifact, where, wish)
