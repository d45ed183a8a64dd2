"""`python -m finetune_operator`: arguments, logging, signals.

Every argument has an environment variable: --default-image is FINETUNE_OPERATOR_DEFAULT_IMAGE, and so on.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from prometheus_client import disable_created_metrics

from . import __version__
from .connection import NotConfigured, connect
from .leader import Election
from .observe import Defaults
from .service import Options, Service
from .watch import loop_factory

logger = logging.getLogger(__name__)

PREFIX = "FINETUNE_OPERATOR_"
EXIT_USAGE = 64
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
MIN_LEASE_SECONDS = 3
GARBAGE = 10_000
"""New objects after which Python looks for cycles; 700 by default. Events are short-lived dicts without any."""


class _Parser(argparse.ArgumentParser):
    """argparse's own status for a wrong usage is 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> argparse.Namespace:
    """SystemExit with a message when an argument, or what the environment says instead, is wrong."""

    def default(name: str, otherwise: str = "") -> str:
        return environ.get(PREFIX + name, otherwise)

    parser = _Parser(
        prog="finetune-operator",
        description="Runs FineTuneJobs on Kubernetes.",
        epilog=f"Each option is also read from the environment: --default-image from {PREFIX}DEFAULT_IMAGE.",
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--namespace", action="append", metavar="NAME", help="look after this namespace (repeatable)")
    scope.add_argument("--all-namespaces", action="store_true", help="look after all namespaces")
    parser.add_argument("--default-image", default=default("DEFAULT_IMAGE", f"finetune-trainer:{__version__}"),
                        help="trainer image of jobs that name none (default: %(default)s)")  # fmt: skip
    parser.add_argument("--trainer-command", type=shlex.split, default=default("TRAINER_COMMAND", "finetune agent"),
                        help="what a pod runs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--listen", default=default("LISTEN", "127.0.0.1:8080"), metavar="HOST:PORT",
                        help="/metrics, /healthz and /readyz; empty: none (default: %(default)s)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=default("WORKERS", "32"), metavar="N",
                        help="jobs looked at concurrently (default: %(default)s)")  # fmt: skip
    parser.add_argument("--leader-elect", action="store_true", default=default("LEADER_ELECT") in ("1", "true"),
                        help="with several replicas: only the one that holds the Lease acts")  # fmt: skip
    parser.add_argument("--lease-name", default=default("LEASE_NAME", "finetune-operator"), metavar="NAME",
                        help="of the Lease (default: %(default)s)")  # fmt: skip
    parser.add_argument("--lease-namespace", default=default("LEASE_NAMESPACE") or _own_namespace(), metavar="NAME",
                        help="of the Lease (default: the pod's own)")  # fmt: skip
    parser.add_argument("--lease-seconds", type=int, default=default("LEASE_SECONDS", "13"), metavar="N",
                        help="after which a silent leader is replaced (default: %(default)s)")  # fmt: skip
    parser.add_argument("--grow-after", type=float, default=default("GROW_AFTER", "300"), metavar="SECONDS",
                        help="how long an elastic job runs with fewer nodes before it looks for more; "
                        "longer each time that it changed (default: %(default)s)")  # fmt: skip
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
    port = args.listen.rpartition(":")[2]
    if args.listen and not (port.isdigit() and int(port) <= 65535):
        parser.error(f"--listen {args.listen}: write HOST:PORT")
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: at least 1")
    if not args.grow_after >= 0:
        parser.error(f"--grow-after {args.grow_after}: at least 0")
    if args.leader_elect and not args.lease_namespace:
        parser.error("say where the Lease is: --lease-namespace NAME")
    if args.lease_seconds < MIN_LEASE_SECONDS:
        parser.error(f"--lease-seconds {args.lease_seconds}: at least {MIN_LEASE_SECONDS}")
    return args


def election(args: argparse.Namespace) -> Election | None:
    """None without --leader-elect. An identity of its own for each process, also in a pod that starts again."""
    if not args.leader_elect:
        return None
    seconds = args.lease_seconds
    return Election(
        namespace=args.lease_namespace,
        name=args.lease_name,
        identity=f"{socket.gethostname()}_{secrets.token_hex(4)}",
        lease=seconds,
        renew=seconds * 2 / 3,
        retry=seconds * 2 / 15,
    )


def _own_namespace() -> str:
    """The pod's; empty outside of one."""
    try:
        return NAMESPACE_FILE.read_text().strip()
    except OSError:
        return ""


def options(args: argparse.Namespace) -> Options:
    defaults = Defaults(
        image=args.default_image,
        trainer_command=tuple(args.trainer_command),
        grow_after=args.grow_after,
    )
    return Options(
        namespaces=tuple(dict.fromkeys(args.namespace)),
        defaults=defaults,
        listen=args.listen,
        workers=args.workers,
        election=election(args),
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
    try:
        await Service(connection, chosen).run(stop)
    except NotConfigured as error:
        logger.error("%s", error)
        return EXIT_USAGE
    return 0


def main() -> None:
    args = parse(sys.argv[1:], os.environ)
    logging.basicConfig(
        level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("kopf").setLevel(max(logging.ERROR, logging.root.level))  # its ends are told by watch
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.root.level))
    disable_created_metrics()  # type: ignore[no-untyped-call]
    gc.freeze()  # the collector need not walk through what was imported
    gc.set_threshold(GARBAGE)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(serve(args)))
