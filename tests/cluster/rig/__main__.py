"""The rig by hand: python -m tests.cluster.rig up [--node] | status | down | wipe | build [NAME...] [--apt]."""

from __future__ import annotations

import argparse
import sys
import time

from tools import image_build

from . import build, machine
from .lifecycle import down, status, up, wipe
from .state import Paths, RigError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.rig", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    starts = commands.add_parser("up", help="start it and keep it, also over test sessions")
    starts.add_argument("--node", action="store_true", help="with a node: pods really run (needs root)")
    builds = commands.add_parser("build", help="build programs into the cache; by default all that tests need")
    builds.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(build.BINARIES)}")
    builds.add_argument(
        "--apt", action="store_true", help="first install what building and running need (Debian, root)"
    )
    builds.add_argument("--image", action="store_true", help="then the operator's image, where it can be built")
    for name, text in (
        ("status", "what runs"),
        ("down", "stop it, keep its data"),
        ("wipe", "stop it, remove its data"),
    ):
        command = commands.add_parser(name, help=text)
        if name != "status":
            command.add_argument("--force", action="store_true", help="although somebody uses or keeps it")
    chosen = parser.parse_args()
    try:
        return _do(chosen, Paths())
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        return 1


def _do(chosen: argparse.Namespace, paths: Paths) -> int:
    began = time.monotonic()
    if chosen.command == "build":
        if chosen.apt:
            machine.install_debian_packages()
        build.build(chosen.names or build.EVERYTHING, paths)
        if chosen.image and not image_build.missing():
            image_build.build("operator")
    elif chosen.command == "up":
        lacking = machine.missing_for_node(paths) if chosen.node else machine.missing_for_control_plane(paths)
        if lacking:
            raise RigError("this machine cannot: " + "; ".join(lacking))
        rig = up(paths, with_node=chosen.node, kept=True)
        print(f"rig: up in {time.monotonic() - began:.1f} s; export KUBECONFIG={rig.kubeconfig}")
    elif chosen.command == "status":
        print(status(paths))
    elif chosen.command == "down":
        down(paths, force=chosen.force)
        print(f"rig: down in {time.monotonic() - began:.1f} s; its data stay in {paths.state}")
    else:
        wipe(paths, force=chosen.force)
        print(f"rig: gone, with {paths.state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
