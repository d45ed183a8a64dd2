"""Entry point of `finetune COMMAND …` and `kubectl finetune COMMAND …`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from finetune_api import names
from finetune_api.failures import CLASSES, OF_THE_COMMAND, ExitCode, FinetuneError, Reason
from finetune_api.logs import ENV_FORMAT, FORMATS, chosen_format
from finetune_trainer.cli.usage import Parser

if TYPE_CHECKING:
    from finetune_trainer.cli.jobs import Where

Handler = Callable[[argparse.Namespace], int]

_MEANINGS = {ExitCode.OK: "done", ExitCode.USAGE: "usage", ExitCode.NO_INPUT: "not found"} | {
    traits.exit_code: traits.meaning for traits in CLASSES.values()
}
EPILOG = fill("exit status: " + ", ".join(f"{code} {_MEANINGS[code]}" for code in sorted(_MEANINGS)), 110)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status; errors are printed to stderr."""
    debug = bool(os.environ.get("FINETUNE_DEBUG"))
    top = parser(_program())
    if not (sys.argv[1:] if argv is None else argv):
        top.print_help(sys.stderr)
        return ExitCode.USAGE
    try:
        options = top.parse_args(argv)
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
        print("  hint  set FINETUNE_DEBUG=1 to see the traceback, and please report it", file=sys.stderr)
        return ExitCode.INTERNAL


def _program() -> str:
    called = Path(sys.argv[0]).name
    return "kubectl finetune" if called.startswith("kubectl") else "finetune"


def _lacking(error: ModuleNotFoundError) -> FinetuneError:
    """Explains a missing package: validate, status, logs and report need fewer packages than the other commands."""
    message = f"this command needs {error.name}, which is not installed"
    return FinetuneError(Reason.CommandMissing, message, "Install the trainer: pip install finetune-operator[trainer].")


def _told(error: FinetuneError) -> str:
    from finetune_trainer.cli.text import aligned, runbook

    # A class decides about retries, and commands are not retried.
    reason = f"{error.reason}" + ("" if error.reason in OF_THE_COMMAND else f" (class {error.failure_class})")
    told = [("reason", reason), ("message", error.message), ("hint", error.hint)]
    if error.reason not in OF_THE_COMMAND:
        told.append(("docs", runbook(error.failure_class)))
    return aligned(told, indent="")


def parser(program: str) -> argparse.ArgumentParser:
    top = Parser(
        prog=program, description="Fine-tune language models, on Kubernetes or on this machine.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    from finetune_trainer.cli import analyze, artifacts, data, lifecycle, shell
    from finetune_trainer.cli.examples import add_examples

    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a job on this machine; run it again to resume")
    run.add_argument("file", metavar="FILE", help="manifest with one FineTuneJob; - for standard input")
    run.add_argument(
        "--fresh", action="store_true", help="start from the first step, and replace an earlier result of this job"
    )
    run.add_argument(
        "--prices", type=Path, metavar="FILE",
        help="price table, for ladder.budget.money: {currency, date, perGpuHour: {H100: 2.5, this machine: 0.1}}",
    )  # fmt: skip
    run.add_argument("--gpu", metavar="NAME", help="entry of the price table that applies (default: this machine)")
    home_option(run)
    run.set_defaults(handler=_run)

    init = commands.add_parser(
        "init", help="write a commented manifest: three questions, flags, or another trainer's configuration"
    )
    init.add_argument("file", metavar="FILE", nargs="?", type=Path, default=Path("job.yaml"),
                      help="file to write; - for standard output (default: job.yaml)")  # fmt: skip
    init.add_argument("--name", help="name of the job (default: from the output)")
    init.add_argument("--model", metavar="URI", help="base model: hf://org/name, folder or bucket")
    init.add_argument("--data", metavar="URI", help="training rows: file, folder or bucket")
    init.add_argument("--test", metavar="URI", help="rows to compare base and tuned model on")
    init.add_argument("--output", metavar="URI", help="folder or bucket of the result")
    init.add_argument("--secret", metavar="NAME", help="Secret with the keys of the bucket")
    init.add_argument("--nodes", type=int, help="number of pods")
    init.add_argument("--gpus", type=int, help="GPUs per pod")
    init.add_argument(
        "--from", dest="source", type=Path, metavar="FILE",
        help="what to convert: Axolotl, LLaMA-Factory, TrainingArguments, TrainJob, PyTorchJob",
    )  # fmt: skip
    init.add_argument("--force", action="store_true", help="replace FILE")
    init.set_defaults(handler=_init)

    validate = commands.add_parser("validate", help="check manifests without a cluster")
    validate.add_argument("files", metavar="FILE", nargs="+", help="manifest; - for standard input")
    validate.add_argument("-o", "--output", choices=("text", "json"), default="text")
    validate.set_defaults(handler=_validate)

    plan = commands.add_parser("plan", help="estimate memory, time and cost of a job before running it")
    plan.add_argument("file", metavar="FILE", help="manifest with one FineTuneJob; - for standard input")
    plan.add_argument(
        "--gpu", metavar="NAME", help="GPU type: H100, A100-80 or L40S (default: the CPUs of this machine)"
    )
    plan.add_argument("--memory", metavar="80Gi", help="memory per GPU, or of this machine")
    plan.add_argument(
        "--prices", type=Path, metavar="FILE", help="price table: {currency, date, perGpuHour: {H100: 2.5}}"
    )
    plan.add_argument(
        "--model", type=Path, metavar="FOLDER", help="folder with the model's config.json (default: model.uri)"
    )
    plan.add_argument("--rows", type=int, help="number of training rows (default: counted in local files)")
    plan.add_argument(
        "--tokens", type=int, help="tokens per epoch (default: a quarter of the size of local files in bytes)"
    )
    plan.add_argument(
        "--longest", type=int, help="length of the longest row in tokens (default: estimated from local files)"
    )
    plan.add_argument(
        "--network", type=float, default=100.0, metavar="GBIT", help="inter-node bandwidth in Gbit/s (default: 100)"
    )
    plan.add_argument(
        "--exact", action="store_true", help="also trace the memory of one step exactly; takes about a minute"
    )
    plan.add_argument("--all", action="store_true", help="also show the methods that do not fit")
    plan.add_argument("-o", "--output", choices=("text", "json"), default="text")
    home_option(plan)
    plan.set_defaults(handler=_plan)

    analyze.add_commands(commands, home_option)
    status = commands.add_parser("status", help="show the status of a job: progress, scores, failures")
    status.add_argument("name", metavar="NAME")
    status.add_argument("-o", "--output", choices=("text", "json"), default="text")
    _cluster(status)
    status.set_defaults(handler=_status)

    running = commands.add_parser("top", help="list the running jobs of a cluster: GPUs, progress, GPU hours, cost")
    running.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    running.add_argument("--all", action="store_true", help="also jobs that wait or have ended")
    running.add_argument("-o", "--output", choices=("text", "json"), default="text")
    running.add_argument("-n", "--namespace", help="namespace (default: that of the kubeconfig context)")
    running.add_argument("--context", help="kubeconfig context (default: the current one)")
    running.set_defaults(handler=_top)

    logs = commands.add_parser("logs", help="show the logs of a job")
    logs.add_argument("name", metavar="NAME")
    logs.add_argument(
        "--node", type=int, help="show one node only (default: node 0 of a local run, all nodes on a cluster)"
    )
    logs.add_argument("--attempt", type=int, help="number of the attempt (default: the current one)")
    logs.add_argument("-f", "--follow", action="store_true", help="follow the log")
    _cluster(logs)
    logs.set_defaults(handler=_logs)

    report = commands.add_parser("report", help="locate the HTML report of a job or an artifact")
    report.add_argument("target", metavar="NAME_OR_URI")
    report.add_argument("--save", type=Path, metavar="PATH", help="save a copy")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    report.add_argument("--text", action="store_true", help="print what was measured, by all metrics, instead")
    _cluster(report)
    report.set_defaults(handler=_report)

    promote = commands.add_parser("promote", help="publish an artifact that a guard kept back")
    promote.add_argument("target", metavar="NAME_OR_URI", help="a job, or the URI in its status.candidate")
    promote.add_argument("--overwrite", action="store_true", help="replace another run's artifact in output.uri")
    promote.add_argument("-o", "--output", choices=("text", "json"), default="text")
    _cluster(promote)
    promote.set_defaults(handler=_promote)

    compare = commands.add_parser(
        "compare", help="compare two artifacts on the rows that both were measured on, with intervals and verdicts"
    )
    compare.add_argument("first", metavar="A", help="artifact: URI, folder or name of a job")
    compare.add_argument("second", metavar="B", nargs="?", help="another one (default: the tuned model of A)")
    compare.add_argument(
        "--model-a", metavar="MODEL", help="base, tuned or scale/NUMBER (default: tuned; base without B)"
    )
    compare.add_argument("--model-b", metavar="MODEL", default="tuned", help="of B (default: tuned)")
    compare.add_argument("--data", action="append", default=[], metavar="NAME", help="only this data set; repeatable")
    compare.add_argument("-o", "--output", choices=("text", "json"), default="text")
    _cluster(compare)
    compare.set_defaults(handler=_compare)

    verify = commands.add_parser("verify", help="verify the checksum of every file of an artifact")
    verify.add_argument("artifact", metavar="ARTIFACT", help="URI, folder or name of a job")
    verify.add_argument("-o", "--output", choices=("text", "json"), default="text")
    _cluster(verify)
    verify.set_defaults(handler=_verify)

    agent = commands.add_parser("agent", help="run one node of a job (started by the operator, or by run)")
    agent.add_argument("--plan", type=Path, default=Path(names.PLAN_DIR) / names.PLAN_FILE)
    agent.add_argument("--run-dir", type=Path, default=Path(os.environ.get(names.ENV_RUN_DIR, names.RUN_DIR)))
    agent.add_argument("--listen", type=_address, default=("", names.AGENT_PORT), metavar="ADDR:PORT|none",
                       help="address of /metrics, /progress and /healthz; port 0 chooses a free port")  # fmt: skip
    agent.add_argument(
        "--no-preflight", action="store_true", help="skip the preflight checks; another node on this machine runs them"
    )
    agent.add_argument("--program", default="finetune_trainer.train.main", help=argparse.SUPPRESS)
    agent.add_argument("--local", action="store_true", help="exit when the parent process exits")
    agent.add_argument("--log-format", choices=FORMATS, default=chosen_format(),
                       help=f"text, or JSON: one object a line (default: ${ENV_FORMAT}, else text)")  # fmt: skip
    agent.set_defaults(handler=_agent)
    data.add_commands(commands, home_option)
    lifecycle.add_commands(commands, _cluster)
    artifacts.add_commands(commands, _cluster)
    shell.add_commands(commands, top)
    add_examples(commands.choices)
    return top


def home_option(command: argparse.ArgumentParser) -> None:
    home = Path(os.environ.get("FINETUNE_HOME", ".finetune"))
    command.add_argument("--home", type=Path, default=home, help="folder of local runs (default: .finetune)")


def _cluster(command: argparse.ArgumentParser) -> None:
    home_option(command)
    command.add_argument("-n", "--namespace", help="find the job on the cluster, in this namespace")
    command.add_argument("--context", help="find the job on the cluster of this kubeconfig context")


def _address(text: str) -> tuple[str, int] | None:
    if text == "none":
        return None
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDR:PORT")
    return host.strip("[]"), int(port)


class _Version(argparse.Action):
    """Prints the version. It is looked up only when requested, since reading package metadata is slow."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"finetune {version('finetune-operator')}")
        parser.exit(0)


def _run(options: argparse.Namespace) -> int:
    from finetune_trainer.agent.home import Home
    from finetune_trainer.cli.run import run_file

    return run_file(options.file, home=Home(options.home), fresh=options.fresh, prices=options.prices, gpu=options.gpu)


def _init(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.init import Answers, init

    names = ("file", "name", "model", "data", "test", "output", "secret", "nodes", "gpus", "source", "force")
    given = Answers(**{name: getattr(options, name) for name in names})
    return init(given, ask=input if sys.stdin.isatty() else None)


def _validate(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.validate import validate_files

    return validate_files(options.files, as_json=options.output == "json")


def _plan(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.plan import Wish, show_plan

    return show_plan(
        Wish(
            file=options.file, gpu=options.gpu, memory=options.memory, prices=options.prices, model=options.model,
            rows=options.rows, tokens=options.tokens, longest=options.longest, network=options.network,
            exact=options.exact, as_json=options.output == "json", everything=options.all,
            cache=options.home.absolute() / "cache",
        )
    )  # fmt: skip


def _status(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.status import show_status

    return show_status(options.name, where=_where(options), as_json=options.output == "json")


def _top(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.jobs import Where
    from finetune_trainer.cli.top import show_top

    where = Where(home=Path(), namespace=options.namespace, context=options.context)
    as_json = options.output == "json"
    return show_top(where, everywhere=options.all_namespaces, all_phases=options.all, as_json=as_json)


def _logs(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.logs import show_logs

    return show_logs(
        options.name, where=_where(options), node=options.node, attempt=options.attempt, follow=options.follow
    )


def _report(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.report import show_report

    return show_report(
        options.target, where=_where(options), save=options.save, open_it=options.open, text=options.text
    )


def _compare(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.compare import Request, show_comparison

    request = Request(
        first=options.first, second=options.second, first_model=options.model_a, second_model=options.model_b,
        only=options.data, as_json=options.output == "json",
    )  # fmt: skip
    return show_comparison(request, where=_where(options))


def _promote(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.promote import promote

    as_json = options.output == "json"
    return promote(options.target, where=_where(options), overwrite=options.overwrite, as_json=as_json)


def _where(options: argparse.Namespace) -> Where:
    from finetune_trainer.cli.jobs import Where

    return Where(home=options.home, namespace=options.namespace, context=options.context)


def _verify(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.verify import verify_artifact

    return verify_artifact(options.artifact, where=_where(options), as_json=options.output == "json")


def _agent(options: argparse.Namespace) -> int:
    from finetune_trainer.agent.children import die_with_parent
    from finetune_trainer.agent.main import AgentOptions, run_agent
    from finetune_trainer.train.process_exit import exit_process

    if options.local:
        die_with_parent()
    status = run_agent(
        AgentOptions(
            plan=options.plan,
            run_dir=options.run_dir,
            listen=options.listen,
            preflight=not options.no_preflight,
            program=options.program,
            environ={**os.environ, ENV_FORMAT: options.log_format},
        )
    )
    exit_process(status)  # an upload that was given up may still be under way


if __name__ == "__main__":
    sys.exit(main())
