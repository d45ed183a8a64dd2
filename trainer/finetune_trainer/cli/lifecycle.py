"""`finetune submit`, `stop`, `resume`, `retry`, `clone` and `delete`: the life of a job on a cluster, through
`finetune_api.client`; and `watch`, which follows it. Runs on this machine are stopped with Ctrl-C and resumed by
`finetune run`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.failures import ExitCode, FinetuneError, Reason

if TYPE_CHECKING:
    from finetune_api.client import FineTuneJobs, Outcome

Act = Callable[["FineTuneJobs", argparse.Namespace], "Outcome | None"]
"""Runs a command. None: it printed its result itself."""


def add_commands(commands: Any, local_too: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds the commands to the subparsers. `local_too` adds the options of commands that also know local runs."""
    submit = _command(commands, "submit", "create a job on the cluster", _submit, named=False)
    submit.add_argument("file", metavar="FILE", help="manifest with one FineTuneJob; - for standard input")
    _trial(submit)
    _command(commands, "stop", "stop a job after a checkpoint; releases its nodes", lambda jobs, o: jobs.stop(o.name))
    _command(commands, "resume", "continue a stopped job from its checkpoint", lambda jobs, o: jobs.resume(o.name))
    retry = _command(commands, "retry", "delete a failed job and create it again, from step 0", _retry)
    retry.add_argument("-f", "--file", metavar="FILE", help="changed manifest of the job (default: the same one)")
    clone = _command(commands, "clone", "create a job like another one", _clone)
    clone.add_argument("new_name", metavar="NEW_NAME", help="name of the new job")
    clone.add_argument("--to", metavar="URI", help="output.uri of the new job (default: the last part is renamed)")
    clone.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="FIELD=VALUE",
        help="change a field of the spec, such as training.epochs=5; repeatable",
    )  # fmt: skip
    clone.add_argument("--print", dest="printed", action="store_true", help="print the manifest, and create nothing")
    _trial(clone)
    delete = _command(commands, "delete", "delete a job; its artifact stays", _delete)
    delete.add_argument("--force", action="store_true", help="also a job whose training is not finished")
    watch = commands.add_parser("watch", help="follow a job: phase, loss curve, time left, events")
    watch.add_argument("target", metavar="NAME_OR_FILE", help="name of a job, or its manifest")
    watch.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="time between looks (default: 2)")
    watch.add_argument("--once", action="store_true", help="show the job as it is now, and exit")
    watch.add_argument("-o", "--output", choices=("text", "json"), default="text")
    local_too(watch)
    watch.set_defaults(handler=_watch)


def _watch(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.jobs import Where
    from finetune_trainer.cli.watch import watch_target

    where = Where(home=options.home, namespace=options.namespace, context=options.context)
    as_json = options.output == "json"
    return watch_target(options.target, where, as_json=as_json, every=options.every, once=options.once)


def _command(commands: Any, name: str, text: str, act: Act, *, named: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    if named:
        parser.add_argument("name", metavar="NAME", help="name of the job")
    parser.add_argument("-n", "--namespace", help="namespace (default: that of the kubeconfig context)")
    parser.add_argument("--context", help="kubeconfig context (default: the current one)")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.set_defaults(handler=lambda options: _run(options, act))
    return parser


def _trial(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="let the API server check it, and create nothing")


def _run(options: argparse.Namespace, act: Act) -> int:
    from finetune_api.client import FineTuneJobs, ManifestError
    from finetune_api.text import printable
    from finetune_trainer.cli.text import problems_text

    jobs = FineTuneJobs(namespace=options.namespace, context=options.context)
    try:
        done = act(jobs, options)
    except ManifestError as error:
        print(problems_text(getattr(options, "file", None) or options.name, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    if done is None:
        return ExitCode.OK
    if options.output == "json":
        print(json.dumps(done.to_json(), indent=2))
        return ExitCode.OK
    print(printable(done.message))
    for line, command in enumerate(done.next):
        print(f"{'next' if line == 0 else '':<5} {command}")
    return ExitCode.OK


def _source(file: str) -> Path | str:
    return sys.stdin.read() + "\n" if file == "-" else Path(file)


def _submit(jobs: FineTuneJobs, options: argparse.Namespace) -> Outcome:
    return jobs.submit(_source(options.file), dry_run=options.dry_run)


def _retry(jobs: FineTuneJobs, options: argparse.Namespace) -> Outcome:
    return jobs.retry(options.name, _source(options.file) if options.file else None)


def _clone(jobs: FineTuneJobs, options: argparse.Namespace) -> Outcome | None:
    import yaml

    settings = dict(map(_setting, options.settings))
    if options.printed:
        made = jobs.cloned(options.name, options.new_name, output=options.to, settings=settings)
        print(yaml.safe_dump(made, sort_keys=False), end="")
        return None
    return jobs.clone(
        options.name, options.new_name, output=options.to, settings=settings, dry_run=options.dry_run
    )  # fmt: skip


def _setting(text: str) -> tuple[str, Any]:
    """`training.epochs=5` → ("training.epochs", 5): the value is YAML."""
    from finetune_api.client.copies import value_of

    field, equals, value = text.partition("=")
    if not equals or not field:
        raise FinetuneError(Reason.InvalidSpec, f"{text!r} is not FIELD=VALUE", "Write --set training.epochs=5.")
    return field, value_of(value)


def _delete(jobs: FineTuneJobs, options: argparse.Namespace) -> Outcome:
    return jobs.delete(options.name, force=options.force)
