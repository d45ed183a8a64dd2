"""`python -m finetune_operator`: arguments, logging, signals.

Every argument has an environment variable: --default-image is FINETUNE_OPERATOR_DEFAULT_IMAGE, and so on.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence

from prometheus_client import disable_created_metrics

from . import __version__
from .connection import NotConfigured, connect
from .observe import Defaults
from .service import Options, Service
from .watch import loop_factory

logger = logging.getLogger(__name__)

PREFIX = "FINETUNE_OPERATOR_"
EXIT_USAGE = 64


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """SystemExit with a message when an argument is wrong."""

    def default(name: str, otherwise: str = "") -> str:
        return environ.get(PREFIX + name, otherwise)

    parser = argparse.ArgumentParser(
        prog="finetune-operator",
        description="Runs FineTuneJobs on Kubernetes.",
        epilog=f"Each option is also read from the environment: --default-image from {PREFIX}DEFAULT_IMAGE.",
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--namespace", action="append", metavar="NAME", help="look after this namespace (repeatable)")
    scope.add_argument("--all-namespaces", action="store_true", help="look after all namespaces")
    parser.add_argument("--default-image", default=default("DEFAULT_IMAGE", f"finetune-trainer:{__version__}"),
                        help="trainer image of jobs that name none (default: %(default)s)")  # fmt: skip
    parser.add_argument("--trainer-command", default=default("TRAINER_COMMAND", "finetune agent"),
                        help="what a pod runs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--listen", default=default("LISTEN", "127.0.0.1:8080"), metavar="HOST:PORT",
                        help="/metrics, /healthz and /readyz; empty: none (default: %(default)s)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=int(default("WORKERS", "16")), metavar="N",
                        help="jobs looked at concurrently (default: %(default)s)")  # fmt: skip
    parser.add_argument("--kubeconfig", default=default("KUBECONFIG") or None, metavar="FILE",
                        help="default: the service account in a pod, else $KUBECONFIG or ~/.kube/config")  # fmt: skip
    parser.add_argument("--log-level", default=default("LOG_LEVEL", "info"), choices=("debug", "info", "warning"))
    parser.add_argument("--version", action="version", version=__version__)
    args = parser.parse_args(argv)
    args.namespace = args.namespace or [n for n in default("NAMESPACES").split(",") if n]
    if not args.namespace and not args.all_namespaces and default("ALL_NAMESPACES") not in ("1", "true"):
        parser.error("say which namespaces to look after: --namespace NAME (repeatable) or --all-namespaces")
    if args.all_namespaces:
        args.namespace = []
    if args.listen and not args.listen.rpartition(":")[2].isdigit():
        parser.error(f"--listen {args.listen}: write HOST:PORT")
    return args


def options(args: argparse.Namespace) -> Options:
    defaults = Defaults(image=args.default_image, trainer_command=tuple(shlex.split(args.trainer_command)))
    return Options(
        namespaces=tuple(dict.fromkeys(args.namespace)),
        defaults=defaults,
        listen=args.listen,
        workers=max(1, args.workers),
    )


async def serve(args: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT."""
    try:
        connection = await connect(args.kubeconfig)
    except NotConfigured as error:
        logger.error("no API server to talk to: %s", error)
        return EXIT_USAGE
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    chosen = options(args)
    where = ", ".join(chosen.namespaces) or "all namespaces"
    logger.info("finetune-operator %s looks after %s through %s", __version__, where, connection.server)
    await Service(connection, chosen).run(stop)
    return 0


def main() -> None:
    args = parse(sys.argv[1:], os.environ)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("kopf").setLevel(max(logging.ERROR, logging.root.level))  # its ends are told by watch
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.root.level))
    disable_created_metrics()  # type: ignore[no-untyped-call]
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(serve(args)))
