"""`finetune COMMAND …`; as `kubectl finetune COMMAND …` the same."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api import names
from finetune_api.failures import OF_THE_COMMAND, ExitCode, FinetuneError, Reason

if TYPE_CHECKING:
    from finetune_trainer.cli.jobs import Where

Handler = Callable[[argparse.Namespace], int]

EPILOG = """exit status: 0 done, 64 usage, 65 data, 66 not found, 69 unavailable, 70 internal, 75 interrupted (run again
to resume), 77 credentials, 78 manifest or configuration, 80 out of memory, 81 loss not finite, 82 hang, 83 peer lost"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command's exit status; what went wrong is told on stderr in words."""
    debug = bool(os.environ.get("FINETUNE_DEBUG"))
    try:
        options = parser(_program()).parse_args(argv)
    except SystemExit as ended:  # argparse's own status for a wrong usage is 2
        return ExitCode.USAGE if ended.code else ExitCode.OK
    handler: Handler = options.handler
    try:
        return handler(options)
    except (FinetuneError, ModuleNotFoundError) as error:
        if debug:
            traceback.print_exc()
        failure = error if isinstance(error, FinetuneError) else _lacking(error)
        print(_told(failure), file=sys.stderr)
        return failure.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  do  set FINETUNE_DEBUG=1 for the traceback, and please report it", file=sys.stderr)
        return ExitCode.INTERNAL


def _program() -> str:
    called = Path(sys.argv[0]).name
    return "kubectl finetune" if called.startswith("kubectl") else "finetune"


def _lacking(error: ModuleNotFoundError) -> FinetuneError:
    """validate, status, logs and report do with less than what trains."""
    message = f"this command needs {error.name}, which is not installed"
    return FinetuneError(Reason.CommandMissing, message, "Install the trainer: pip install finetune-operator[trainer].")


def _told(error: FinetuneError) -> str:
    from finetune_trainer.cli.text import aligned

    # A class says who decides about another attempt, and of these there is none.
    reason = f"{error.reason}" + ("" if error.reason in OF_THE_COMMAND else f" (class {error.failure_class})")
    return aligned([("reason", reason), ("what", error.message), ("do", error.hint)], indent="")


def parser(program: str) -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog=program, description="Tune language models: on Kubernetes by a FineTuneJob, or here by the same manifest.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="train on this machine; run again to resume")
    run.add_argument("file", metavar="FILE", help="manifest of one FineTuneJob; - reads standard input")
    run.add_argument("--fresh", action="store_true", help="start from the first step, replacing this job's own result")
    _home(run)
    run.set_defaults(handler=_run)

    validate = commands.add_parser("validate", help="check manifests without a cluster")
    validate.add_argument("files", metavar="FILE", nargs="+", help="manifest; - reads standard input")
    validate.set_defaults(handler=_validate)

    plan = commands.add_parser("plan", help="what a job would need, take and cost, before anything is held")
    plan.add_argument("file", metavar="FILE", help="manifest of one FineTuneJob; - reads standard input")
    plan.add_argument("--gpu", metavar="NAME", help="H100, A100-80 or L40S (default: this machine's processors)")
    plan.add_argument("--memory", metavar="80Gi", help="of each GPU, or of this machine")
    plan.add_argument("--prices", type=Path, metavar="FILE", help="your own: {currency, date, perGpuHour: {H100: 2.5}}")
    plan.add_argument("--model", type=Path, metavar="FOLDER", help="with the model's config.json, if it is elsewhere")
    plan.add_argument("--rows", type=int, help="of the training data (default: counted in local files)")
    plan.add_argument("--tokens", type=int, help="of an epoch (default: a quarter of the bytes of local files)")
    plan.add_argument("--network", type=float, default=100.0, metavar="GBIT", help="between nodes, a second")
    plan.add_argument("--exact", action="store_true", help="also follow a step tensor by tensor; a minute of CPU")
    plan.add_argument("-o", "--output", choices=("text", "json"), default="text")
    _home(plan)
    plan.set_defaults(handler=_plan)

    status = commands.add_parser("status", help="where a job is, what it measured, why it failed")
    status.add_argument("name", metavar="NAME")
    status.add_argument("-o", "--output", choices=("text", "json"), default="text")
    _cluster(status)
    status.set_defaults(handler=_status)

    logs = commands.add_parser("logs", help="what the nodes of a job said")
    logs.add_argument("name", metavar="NAME")
    logs.add_argument("--node", type=int, help="one node only (default: node 0 of local runs, all nodes on a cluster)")
    logs.add_argument("--attempt", type=int, help="default: the present one")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines come")
    _cluster(logs)
    logs.set_defaults(handler=_logs)

    report = commands.add_parser("report", help="where the HTML report of a job or an artifact is")
    report.add_argument("target", metavar="NAME_OR_URI")
    report.add_argument("--save", type=Path, metavar="PATH", help="keep a copy there")
    report.add_argument("--open", action="store_true", help="show it in the browser")
    _cluster(report)
    report.set_defaults(handler=_report)

    verify = commands.add_parser("verify", help="check every file of an artifact against its manifest")
    verify.add_argument("uri", metavar="URI", help="folder of the artifact, as in output.uri")
    verify.set_defaults(handler=_verify)

    agent = commands.add_parser("agent", help="one node of a job (started by the operator, or by run)")
    agent.add_argument("--plan", type=Path, default=Path(names.PLAN_DIR) / names.PLAN_FILE)
    agent.add_argument("--run-dir", type=Path, default=Path(os.environ.get(names.ENV_RUN_DIR, names.RUN_DIR)))
    agent.add_argument("--listen", type=_address, default=("0.0.0.0", names.AGENT_PORT), metavar="ADDR:PORT|none",
                       help="for /metrics, /progress and /healthz; port 0 takes a free one")  # fmt: skip
    agent.add_argument("--no-preflight", action="store_true", help="another node of this machine looks for all")
    agent.add_argument("--program", default="finetune_trainer.train.main", help=argparse.SUPPRESS)
    agent.add_argument("--local", action="store_true", help="end when the parent process ends")
    agent.set_defaults(handler=_agent)
    return top


def _home(command: argparse.ArgumentParser) -> None:
    home = Path(os.environ.get("FINETUNE_HOME", ".finetune"))
    command.add_argument("--home", type=Path, default=home, help="folder of local runs (default: .finetune)")


def _cluster(command: argparse.ArgumentParser) -> None:
    _home(command)
    command.add_argument("-n", "--namespace", help="look on the cluster, in this namespace")
    command.add_argument("--context", help="look on the cluster, by this kubeconfig context")


def _address(text: str) -> tuple[str, int] | None:
    if text == "none":
        return None
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDR:PORT")
    return host.strip("[]") or "0.0.0.0", int(port)


class _Version(argparse.Action):
    """Looked up when asked for: reading package metadata is slow."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"finetune {version('finetune-operator')}")
        parser.exit(0)


def _run(options: argparse.Namespace) -> int:
    from finetune_trainer.agent.home import Home
    from finetune_trainer.cli.run import run_file

    return run_file(options.file, home=Home(options.home), fresh=options.fresh)


def _validate(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.validate import validate_files

    return validate_files(options.files)


def _plan(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.plan import Wish, show_plan

    return show_plan(
        Wish(
            file=options.file, gpu=options.gpu, memory=options.memory, prices=options.prices, model=options.model,
            rows=options.rows, tokens=options.tokens, network=options.network, exact=options.exact,
            as_json=options.output == "json", cache=options.home.absolute() / "cache",
        )
    )  # fmt: skip


def _status(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.status import show_status

    return show_status(options.name, where=_where(options), as_json=options.output == "json")


def _logs(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.logs import show_logs

    return show_logs(
        options.name, where=_where(options), node=options.node, attempt=options.attempt, follow=options.follow
    )


def _report(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.report import show_report

    return show_report(options.target, where=_where(options), save=options.save, open_it=options.open)


def _where(options: argparse.Namespace) -> Where:
    from finetune_trainer.cli.jobs import Where

    return Where(home=options.home, namespace=options.namespace, context=options.context)


def _verify(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.verify import verify_uri

    return verify_uri(options.uri)


def _agent(options: argparse.Namespace) -> int:
    from finetune_trainer.agent.children import die_with_parent
    from finetune_trainer.agent.main import AgentOptions, run_agent
    from finetune_trainer.train.leave import leave

    if options.local:
        die_with_parent()
    status = run_agent(
        AgentOptions(
            plan=options.plan,
            run_dir=options.run_dir,
            listen=options.listen,
            preflight=not options.no_preflight,
            program=options.program,
        )
    )
    leave(status)  # an upload that was given up may still be under way


if __name__ == "__main__":
    sys.exit(main())
