"""Options of the commands that use an artifact: `serve-manifest`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

SERVERS = ("vllm", "kserve")


def add_commands(commands: Any, cluster_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds them to the subparsers."""
    serve = commands.add_parser("serve-manifest", help="print what a server reads to serve an artifact")
    serve.add_argument("artifact", metavar="ARTIFACT", help="URI, folder or name of a job")
    serve.add_argument("--for", dest="server", choices=SERVERS, required=True, help="server")
    serve.add_argument("--merged", action="store_true", help="serve the merged model rather than the adapter")
    cluster_options(serve)
    serve.set_defaults(handler=_serve)


def _serve(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.jobs import Where
    from finetune_trainer.cli.serving import serve_manifest

    where = Where(home=options.home, namespace=options.namespace, context=options.context)
    return serve_manifest(options.artifact, where, server=options.server, whole=options.merged)
