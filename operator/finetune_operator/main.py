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

from finetune_api.admin_policy import AdminPolicy, load
from finetune_api.logs import FORMATS

from . import __version__, logs
from .health import Guard
from .kube.connection import NotConfigured, connect
from .kube.kopf_watch import loop_factory
from .kube.leader import Election
from .network_policy import peers_of
from .service import Options, Service
from .state.observe import Defaults
from .state.prices import Prices

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
    scope.add_argument("--namespace", action="append", metavar="NAME", help="watch this namespace (repeatable)")
    scope.add_argument("--all-namespaces", action="store_true", help="watch all namespaces")
    parser.add_argument("--default-image", default=default("DEFAULT_IMAGE", f"finetune-trainer:{__version__}"),
                        help="trainer image of jobs without spec.image (default: %(default)s)")  # fmt: skip
    parser.add_argument("--trainer-command", type=shlex.split, default=default("TRAINER_COMMAND", "finetune agent"),
                        help="command that each pod runs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--listen", default=default("LISTEN", "127.0.0.1:8080"), metavar="HOST:PORT",
                        help="address of /metrics, /healthz and /readyz; :PORT for IPv4 and IPv6; empty: none "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--tls-cert", default=default("TLS_CERT") or None, type=Path, metavar="FILE",
                        help="serve --listen over TLS with this certificate chain (PEM); reloaded when "
                        "it changes")  # fmt: skip
    parser.add_argument("--tls-key", default=default("TLS_KEY") or None, type=Path, metavar="FILE",
                        help="key of --tls-cert (PEM)")  # fmt: skip
    parser.add_argument("--metrics-token-file", default=default("METRICS_TOKEN_FILE") or None, type=Path,
                        metavar="FILE", help="/metrics requires the bearer token in this file; "
                        "default: no authentication")  # fmt: skip
    parser.add_argument("--workers", type=int, default=default("WORKERS", "32"), metavar="N",
                        help="jobs that are reconciled concurrently (default: %(default)s)")  # fmt: skip
    parser.add_argument("--leader-elect", action="store_true", default=default("LEADER_ELECT") in ("1", "true"),
                        help="elect a leader among several replicas by a Lease")  # fmt: skip
    parser.add_argument("--lease-name", default=default("LEASE_NAME", "finetune-operator"), metavar="NAME",
                        help="name of the Lease (default: %(default)s)")  # fmt: skip
    parser.add_argument("--lease-namespace", default=default("LEASE_NAMESPACE") or _own_namespace(), metavar="NAME",
                        help="namespace of the Lease (default: the pod's own)")  # fmt: skip
    parser.add_argument("--lease-seconds", type=int, default=default("LEASE_SECONDS", "13"), metavar="N",
                        help="seconds after which a leader that does not respond is replaced "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--grow-after", type=float, default=default("GROW_AFTER", "300"), metavar="SECONDS",
                        help="seconds that an elastic job runs with fewer nodes before it checks for more; "
                        "longer after each change of size (default: %(default)s)")  # fmt: skip
    parser.add_argument("--policy", default=default("POLICY") or None, type=Path, metavar="FILE",
                        help="what jobs may ask for, and defaults of their pods (YAML); read at the start "
                        "(default: no restrictions)")  # fmt: skip
    parser.add_argument("--gpu-prices", type=_prices, default=default("GPU_PRICES"), metavar="JSON",
                        help='price of a GPU hour, for status.usage: {"currency": "EUR", "perGpuHour": [{"price": 2.5, '
                        '"resource": "nvidia.com/gpu", "nodeSelector": {...}}]}; the first entry that fits a job '
                        "(default: none)")  # fmt: skip
    parser.add_argument("--job-network-policy", default=default("JOB_NETWORK_POLICY"), metavar="JSON", dest="peers",
                        help="make a NetworkPolicy for each job: its pods are open to each other, and their agents' "
                        "port to these peers, a list as in a NetworkPolicy; empty: none is made")  # fmt: skip
    parser.add_argument("--kubeconfig", default=default("KUBECONFIG") or None, metavar="FILE",
                        help="default: the service account in a pod, else $KUBECONFIG or ~/.kube/config")  # fmt: skip
    parser.add_argument("--log-level", default=default("LOG_LEVEL", "info"), choices=("debug", "info", "warning"))
    parser.add_argument("--log-format", default=default("LOG_FORMAT", "text"), choices=FORMATS,
                        help="text, or JSON: one object a line (default: %(default)s)")  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    args = parser.parse_args(argv)
    args.namespace = args.namespace or [n for n in default("NAMESPACES").split(",") if n]
    if not args.namespace and not args.all_namespaces and default("ALL_NAMESPACES") not in ("1", "true"):
        parser.error("choose the namespaces to watch: --namespace NAME (repeatable) or --all-namespaces")
    if args.all_namespaces:
        args.namespace = []
    port = args.listen.rpartition(":")[2]
    if args.listen and not (port.isdigit() and int(port) <= 65535):
        parser.error(f"--listen {args.listen}: write HOST:PORT")
    if (args.tls_cert is None) != (args.tls_key is None):
        parser.error("--tls-cert and --tls-key: give both, or neither")
    if args.log_format not in FORMATS:  # argparse does not check defaults, which the environment sets
        parser.error(f"--log-format {args.log_format}: one of {', '.join(FORMATS)}")
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: at least 1")
    if not args.grow_after >= 0:
        parser.error(f"--grow-after {args.grow_after}: at least 0")
    try:
        args.peers = peers_of(args.peers)
    except ValueError as error:
        parser.error(f"--job-network-policy: {error}")
    if args.leader_elect and not args.lease_namespace:
        parser.error("set the namespace of the Lease: --lease-namespace NAME")
    if args.lease_seconds < MIN_LEASE_SECONDS:
        parser.error(f"--lease-seconds {args.lease_seconds}: at least {MIN_LEASE_SECONDS}")
    return args


def _prices(text: str) -> Prices:
    try:
        return Prices.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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


def admin_policy(path: Path | None) -> AdminPolicy:
    """ValueError, with the file's name, if it cannot be read or is not a policy."""
    try:
        return load(path) if path else AdminPolicy()
    except (OSError, ValueError) as error:
        raise ValueError(f"--policy {path}: {getattr(error, 'strerror', None) or error}") from None


def options(args: argparse.Namespace) -> Options:
    """ValueError if the policy cannot be read."""
    defaults = Defaults(
        image=args.default_image,
        trainer_command=tuple(args.trainer_command),
        grow_after=args.grow_after,
        policy=admin_policy(args.policy),
        prices=args.gpu_prices,
        peers=args.peers,
    )
    return Options(
        namespaces=tuple(dict.fromkeys(args.namespace)),
        defaults=defaults,
        listen=args.listen,
        guard=Guard(certificate=args.tls_cert, key=args.tls_key, token=args.metrics_token_file),
        workers=args.workers,
        election=election(args),
    )


async def serve(args: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT."""
    try:
        chosen = options(args)
    except ValueError as error:
        logger.error("%s", error)
        return EXIT_USAGE
    try:
        connection = await connect(args.kubeconfig)
    except NotConfigured as error:
        logger.error("cannot connect to an API server: %s", error)
        return EXIT_USAGE
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    where = ", ".join(chosen.namespaces) or "all namespaces"
    logger.info("finetune-operator %s is watching %s at %s", __version__, where, connection.server)
    try:
        await Service(connection, chosen).run(stop)
    except NotConfigured as error:
        logger.error("%s", error)
        return EXIT_USAGE
    return 0


def main() -> None:
    args = parse(sys.argv[1:], os.environ)
    logs.configure(level=args.log_level, format=args.log_format)
    disable_created_metrics()  # type: ignore[no-untyped-call]
    gc.freeze()  # the collector need not walk through what was imported
    gc.set_threshold(GARBAGE)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(serve(args)))
