"""`finetune run` with every bad input: each ends in seconds with its class, reason and hint, and is tried once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from finetune_api.failures import ExitCode, Reason, hint_of
from finetune_api.status import Phase
from tests.support.local_runs import Json, Workspace

pytestmark = pytest.mark.timeout(600)


def rows(workspace: Workspace, *lines: object) -> Json:
    path = workspace.folder / "bad.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return {"train": [{"uri": path.as_uri()}], "sequenceLength": 64}


def no_file(workspace: Workspace) -> Json:
    return {"data": {"train": [{"uri": (workspace.folder / "none.jsonl").as_uri()}]}}


def empty_file(workspace: Workspace) -> Json:
    return {"data": rows(workspace)}


def broken_row(workspace: Workspace) -> Json:
    return {"data": rows(workspace, {"text": "good"}, "{not json\n")}


def no_labels(workspace: Workspace) -> Json:
    return {"data": rows(workspace, {"text": "a"}, {"text": "b"}) | {"format": "classification"}}


def nothing_to_train(workspace: Workspace) -> Json:
    return {"data": rows(workspace, *[{"messages": [{"role": "user", "content": f"hello {i}"}]} for i in range(4)])}


def too_long(workspace: Workspace) -> Json:
    return {
        "data": rows(workspace, *[{"prompt": "p", "completion": "c" * 500}] * 3, {"prompt": "p", "completion": "c"})
    }


def no_model(workspace: Workspace) -> Json:
    return {"model": {"uri": (workspace.folder / "nowhere").as_uri()}}


def no_causal_model(workspace: Workspace) -> Json:
    folder = workspace.folder / "bert"
    shutil.copytree(workspace.files / "model", folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return {"model": {"uri": folder.as_uri()}}


def measured_on_what_it_learned(workspace: Workspace) -> Json:
    return {
        "data": {
            "train": [{"uri": (workspace.files / "corpus" / "train.jsonl").as_uri()}],
            "test": {"uri": (workspace.files / "corpus" / "train.jsonl").as_uri()},
        }
    }


def longer_than_the_model(workspace: Workspace) -> Json:
    return {"data": {"train": [{"uri": (workspace.files / "corpus" / "train.jsonl").as_uri()}], "sequenceLength": 4096}}


def little_memory(_desk: Workspace) -> Json:
    return {"resources": {"limits": {"memory": "64Mi"}}}


def taken_output(workspace: Workspace) -> Json:
    folder = workspace.folder / "taken"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"some": "other"}')
    return {"output": {"uri": folder.as_uri()}}


def unwritable_output(workspace: Workspace) -> Json:
    return {"output": {"uri": (workspace.files / "model" / "config.json" / "below-a-file").as_uri()}}


def bucket_out_of_reach(workspace: Workspace) -> Json:
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    workspace.environ.update(keys | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})  # a port that nobody is given
    return {"data": {"train": [{"uri": "s3://corp/train.jsonl"}]}, "retry": {"maxRestarts": 0}}


BAD: list[tuple[Callable[[Workspace], Json], Reason, int, str]] = [
    (no_file, Reason.DataNotFound, ExitCode.DATA, "none.jsonl"),
    (empty_file, Reason.DataEmpty, ExitCode.DATA, "bad.jsonl"),
    (broken_row, Reason.DataUnreadable, ExitCode.DATA, "line 2"),
    (no_labels, Reason.LabelsMissing, ExitCode.DATA, "label"),
    (nothing_to_train, Reason.NothingToTrain, ExitCode.DATA, ""),
    (too_long, Reason.SequenceTooLong, ExitCode.DATA, "3"),
    (measured_on_what_it_learned, Reason.DataLeak, ExitCode.DATA, "test: "),
    (longer_than_the_model, Reason.InvalidSpec, ExitCode.CONFIG, "data.sequenceLength: 512"),
    (no_model, Reason.ModelNotFound, ExitCode.CONFIG, "nowhere"),
    (no_causal_model, Reason.ModelUnsupported, ExitCode.CONFIG, "BertForMaskedLM"),
    (little_memory, Reason.InsufficientMemory, ExitCode.CONFIG, "64.0 MiB"),
    (taken_output, Reason.OutputExists, ExitCode.CONFIG, "taken"),
    (unwritable_output, Reason.InvalidSpec, ExitCode.CONFIG, "below-a-file"),
    (bucket_out_of_reach, Reason.StorageUnavailable, ExitCode.UNAVAILABLE, "corp"),
]


def assert_refused(workspace: Workspace, changes: Json, reason: Reason, code: int, word: str) -> None:
    assert workspace.run(workspace.manifest(**changes)) == code, workspace.story()
    said = " ".join(workspace.said().split())
    status = workspace.job().status
    assert status.phase is Phase.Failed
    assert status.last_failure is not None
    assert status.last_failure.reason == reason
    assert status.last_failure.exit_code == code
    assert status.last_failure.hint
    assert status.attempt == 1, "trying again cannot help"
    assert f"{reason} (class {status.last_failure.failure_class})" in said
    assert word in said
    assert " ".join(status.last_failure.hint.split()) in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("make", "reason", "code", "word"), BAD, ids=[case[0].__name__ for case in BAD])
def test_bad_input(
    workspace: Workspace, make: Callable[[Workspace], Json], reason: Reason, code: int, word: str
) -> None:
    assert_refused(workspace, make(workspace), reason, code, word)


class _Refuses(BaseHTTPRequestHandler):
    """An object store that knows none of our keys."""

    def do_GET(self) -> None:
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing_store() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("section", ["data", "output"])
def test_wrong_credentials(workspace: Workspace, refusing_store: str, section: str) -> None:
    prefix = f"FINETUNE_{section.upper()}_"
    keys = {
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SECRET_ACCESS_KEY": "secret-never-shown",
        "AWS_ENDPOINT_URL": refusing_store,
    }
    workspace.environ.update({prefix + name: value for name, value in keys.items()})
    data = {"data": {"train": [{"uri": "s3://corp/train.jsonl"}]}}
    changes = data if section == "data" else {"output": {"uri": "s3://corp/out"}}
    assert_refused(workspace, changes, Reason.CredentialsRejected, ExitCode.AUTHENTICATION, "corp")
    assert "secret-never-shown" not in workspace.story()


def test_hints_exist_for_all_that_is_refused() -> None:
    assert all(hint_of(reason) for _, reason, _, _ in BAD)
