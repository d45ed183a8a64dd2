"""Up, down, wipe and status of the whole rig, and the sessions that share it.

A test session joins the rig that others use, or starts one; the last session to leave stops and removes what sessions
started. A rig that a developer keeps (`python -m tests.cluster.rig up`) stays as it was found."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from . import build, control_plane, node
from .process import Processes, answers, start_time
from .rig import Rig
from .state import Paths, RigError, State, locked

STOP_ORDER = ("minio", "apiserver", "etcd")  # the node's programs go before
CREATED = ("cni", "ctd", "etcd", "kubeconfig", "kubectl", "kubelet", "kueue", "log", "pki", "proc", "s3", "sessions")


def up(paths: Paths, *, with_node: bool, kept: bool, say: Callable[[str], None] = print) -> Rig:
    """Starts what does not run yet. With `kept`, sessions that use the rig leave it running."""
    build.build(build.CONTROL_PLANE + (build.NODE + build.S3 if with_node else ()), paths, say=say)
    with _lock(paths):
        return _up(paths, with_node=with_node, kept=kept)


def down(paths: Paths, *, force: bool = False) -> None:
    """Stops everything of the rig; its data stay. Refused while a test session uses it, unless forced."""
    with _lock(paths):
        _refuse_while_used(paths, force=force)
        _down(paths)


def wipe(paths: Paths, *, force: bool = False) -> None:
    """Stops everything and removes what the rig wrote. Refused while a test session uses it or it is kept, unless
    forced: a kept rig may hold what somebody else applied; `down` ends the keeping."""
    with _lock(paths):
        _refuse_while_used(paths, force=force)
        if _kept(paths) and not force:
            raise RigError(f"somebody keeps the rig in {paths.state}: `down` first, or `wipe --force`")
        _wipe(paths)


def join(paths: Paths, *, say: Callable[[str], None] = print) -> Rig:
    """A test session begins to use the rig: the one that others use or keep, or a new one with a control plane
    (`add_node` does more)."""
    build.build(build.CONTROL_PLANE, paths, say=say)
    with _lock(paths):
        if not _sessions(paths) and not _kept(paths):
            _wipe(paths)  # what a killed session left, with whatever it had changed
        rig = _up(paths, with_node=False, kept=False)
        _session_file(paths).parent.mkdir(exist_ok=True)
        _session_file(paths).write_text(str(start_time(os.getpid())))
        return rig


def add_node(rig: Rig, *, say: Callable[[str], None] = print) -> None:
    """Makes the rig one whose pods run, unless it is one already."""
    build.build(build.NODE + build.S3, rig.paths, say=say)
    with _lock(rig.paths):
        node.start(rig)


def leave(paths: Paths) -> None:
    """A test session ends. Nobody else uses the rig and nobody keeps it: it goes, with all that it wrote."""
    with _lock(paths):
        _session_file(paths).unlink(missing_ok=True)
        if _sessions(paths):
            return
        state = State.load(paths)
        if state is None or not state.kept:
            _wipe(paths)
        elif not state.node_kept:  # found without a node, left without one
            processes = Processes(state=paths.state)
            node.stop(paths, processes)
            processes.stop("minio")


def status(paths: Paths) -> str:
    """A line for each component that ever ran: pid, CPU seconds, memory."""
    processes = Processes(state=paths.state)
    lines = [f"{name:20} {_usage(processes.pid(name))}" for name in processes.known()]
    users = len(_sessions(paths))
    lines.append(
        f"used by {users} test session{'' if users == 1 else 's'}{', kept' if _kept(paths) else ''}; {paths.state}"
    )
    return "\n".join(lines)


def _up(paths: Paths, *, with_node: bool, kept: bool) -> Rig:
    state = State.load(paths) or State.draw(kept=kept)
    if kept:
        state = dataclasses.replace(state, kept=True, node_kept=with_node or state.node_kept)
    paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.save(paths)
    rig = Rig.own(paths, state)
    if not _control_plane_healthy(paths):
        control_plane.start(paths, state, Processes(state=paths.state))
    if with_node:
        node.start(rig)
    return rig


def _down(paths: Paths) -> None:
    processes = Processes(state=paths.state)
    node.stop(paths, processes)
    for name in (*[name for name in processes.known() if name not in STOP_ORDER], *STOP_ORDER):
        processes.stop(name)
    if state := State.load(paths):
        dataclasses.replace(state, kept=False, node_kept=False).save(paths)


def _wipe(paths: Paths) -> None:
    _down(paths)
    if not (paths.state / "rig.json").exists():
        return  # not a rig's folder, or nothing in it
    if mounts := node.mounts_below(paths.state):
        raise RigError(f"still mounted, so nothing is removed: {', '.join(mounts)}")
    for name in CREATED:
        shutil.rmtree(paths.state / name, ignore_errors=True)
    for file in paths.state.iterdir():
        if file.is_file():
            file.unlink()
    if not any(paths.state.iterdir()):
        paths.state.rmdir()


def _control_plane_healthy(paths: Paths) -> bool:
    """The programs run and the API server, which asks etcd, says that it is ready."""
    processes, state = Processes(state=paths.state), State.load(paths)
    if state is None or not all(processes.pid(name) for name in ("etcd", "apiserver", "controller-manager")):
        return False
    return answers(f"{control_plane.server(state)}/readyz", ca=paths.pki / "ca.crt")


def _refuse_while_used(paths: Paths, *, force: bool) -> None:
    if (users := _sessions(paths)) and not force:
        pids = ", ".join(map(str, users))
        raise RigError(f"test sessions use the rig in {paths.state} (pid {pids}); `--force` stops it all the same")


def _kept(paths: Paths) -> bool:
    state = State.load(paths)
    return bool(state and state.kept)


def _session_file(paths: Paths) -> Path:
    return paths.state / "sessions" / str(os.getpid())


def _sessions(paths: Paths) -> list[int]:
    """The pids of live sessions that use the rig."""
    files = (paths.state / "sessions").glob("[0-9]*")
    return [int(file.name) for file in files if file.read_text() == start_time(int(file.name))]


def _lock(paths: Paths) -> contextlib.AbstractContextManager[None]:
    return locked(paths.state.with_name(f"{paths.state.name}.lock"))


def _usage(pid: int | None) -> str:
    if pid is None:
        return "-"
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    memory = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    return f"pid {pid:<8} cpu {seconds:7.1f} s  rss {memory:5} MiB"
