"""Every refusal of an object store, by a server that answers as told: reason, words, and no secret in them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store import object_store
from finetune_trainer.store.folder import BucketMissing, Folder, NotFound
from finetune_trainer.store.opening import open_folder


class Server(ThreadingHTTPServer):
    """Answers every request with one status and body; counts them."""

    status = 200
    body = b""
    requests = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests += 1
        body = b"" if self.command == "HEAD" else self.server.body
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

    def log_message(self, *args: object) -> None: ...


@contextmanager
def answering(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with answering() as server:
        yield server


@pytest.fixture(autouse=True)
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_RETRY", {**object_store._RETRY, "max_retries": 1})


def folder_at(port: int) -> Folder:
    environ = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "CANARY-ID",
        "AWS_SECRET_ACCESS_KEY": "CANARY-SECRET",
        "AWS_SESSION_TOKEN": "CANARY-TOKEN",
    }
    return open_folder("s3://corp/models", prefix="", environ=environ)


ANSWERS = [  # status, code, reason, words in the message
    (403, "InvalidAccessKeyId", Reason.CredentialsRejected, "refused the credentials (HTTP 403 InvalidAccessKeyId)"),
    (403, "SignatureDoesNotMatch", Reason.CredentialsRejected, "SignatureDoesNotMatch"),
    (403, "AccessDenied", Reason.CredentialsRejected, "AccessDenied"),
    (403, "RequestTimeTooSkewed", Reason.CredentialsRejected, "RequestTimeTooSkewed"),
    (401, "", Reason.CredentialsRejected, "HTTP 401"),
    (400, "ExpiredToken", Reason.CredentialsRejected, "ExpiredToken"),
    (301, "PermanentRedirect", Reason.InvalidSpec, "the bucket corp is in another region"),
    (400, "KeyTooLongError", Reason.InvalidSpec, "HTTP 400 KeyTooLongError"),
    (400, "RequestTimeout", Reason.StorageUnavailable, "HTTP 400 RequestTimeout"),
    (429, "", Reason.StorageUnavailable, "HTTP 429"),
    (503, "SlowDown", Reason.StorageUnavailable, "is not available (HTTP 503 SlowDown)"),
    (507, "XMinioStorageFull", Reason.StorageUnavailable, "XMinioStorageFull"),
    (500, "InternalError", Reason.StorageUnavailable, "HTTP 500 InternalError"),
]


@pytest.mark.parametrize("doing", ["read", "write", "list", "delete"])
@pytest.mark.parametrize(("status", "code", "reason", "words"), ANSWERS)
def test_refusals(server: Server, doing: str, status: int, code: str, reason: Reason, words: str) -> None:
    server.status = status
    error = f"<Error><Code>{code}</Code><AWSAccessKeyId>CANARY-ID</AWSAccessKeyId></Error>"
    server.body = error.encode() if code else b""
    folder = folder_at(server.server_port)
    act = {"read": folder.read, "write": lambda p: folder.put(p, b"x"), "list": folder.list, "delete": folder.delete}
    with pytest.raises(FinetuneError) as caught:
        act[doing]("a")
    assert caught.value.reason is reason
    assert f"cannot {doing} s3://corp/models/a" in caught.value.message
    assert words in caught.value.message
    assert "CANARY" not in f"{caught.value} {caught.value.__cause__!r}"


def test_a_missing_bucket_is_told_from_a_missing_file(server: Server) -> None:
    folder = folder_at(server.server_port)
    server.status, server.body = 404, b"<Error><Code>NoSuchKey</Code></Error>"
    with pytest.raises(NotFound, match="there is no file s3://corp/models/a") as caught:
        folder.read("a")
    assert not isinstance(caught.value, BucketMissing)
    server.body = b"<Error><Code>NoSuchBucket</Code></Error>"
    for act in (folder.read, folder.list):
        with pytest.raises(BucketMissing, match="there is no bucket corp"):
            act("a")
    with pytest.raises(FinetuneError) as written:
        folder.check_writable()
    assert written.value.reason is Reason.InvalidSpec
    assert written.value.hint == "Create the bucket corp, or correct the URI."


def test_credentials_are_not_tried_twice(server: Server) -> None:
    server.status, server.body, server.requests = 403, b"<Error><Code>AccessDenied</Code></Error>", 0
    with pytest.raises(FinetuneError):
        folder_at(server.server_port).read("a")
    assert server.requests == 1


def test_a_broken_answer_is_the_stores_fault(server: Server) -> None:
    server.status, server.body = 200, b"not a listing"
    with pytest.raises(FinetuneError) as caught:
        folder_at(server.server_port).list()
    assert caught.value.reason is Reason.StorageUnavailable


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(FinetuneError) as caught:
        folder_at(port).read("a")
    assert caught.value.reason is Reason.StorageUnavailable
    assert f"the store at http://127.0.0.1:{port} is not available (connection refused)" in caught.value.message


AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUQK4Seki0kwWvJAx0JYKxCbxc6oEwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTI1MTI0NTU3WhgPMjEy
NjExMDExMjQ1NTdaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEAGgEasXz8gwSYzFypjctVoQc7+5RSinkoTq0cubQ
qTgkmlBg1wvHsD6N96KpVnJsSkl8tCBoTLmdk+1GiB/sQ6NTMFEwHQYDVR0OBBYE
FLsh/lttWgbXvrQES1LpBwZ9TppgMB8GA1UdIwQYMBaAFLsh/lttWgbXvrQES1Lp
BwZ9TppgMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgcuQ2fAX0
tlYGy2gGf4X4vIZT0HWWj26RFuAWhmKa/EECIQD9+jYgwljo/rPvpX3M0vJPKzKj
xNUbj85IZhW1906I1Q==
-----END CERTIFICATE-----
"""
SERVER = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgk8Pft3zFKTzB5BC+
bGnS7WPamX+HoxtXiDLBs2Py8kuhRANCAAQ4ayOeHDemHLEtWlPD+RbgPnabl85W
PfXXElInzkTeOxL+I+9m5LVijFSrL4HvHEEtCkbBrooNLAZ4+g9fthpk
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBrjCCAVWgAwIBAgIUL6vO59ffmBiV7ZyLJo/6q7TkbhAwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTI1MTI0NTU3WhgPMjEy
NjExMDExMjQ1NTdaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEG
CCqGSM49AwEHA0IABDhrI54cN6YcsS1aU8P5FuA+dpuXzlY99dcSUifORN47Ev4j
72bktWKMVKsvge8cQS0KRsGuig0sBnj6D1+2GmSjfjB8MBoGA1UdEQQTMBGCCWxv
Y2FsaG9zdIcEfwAAATAJBgNVHRMEAjAAMBMGA1UdJQQMMAoGCCsGAQUFBwMBMB0G
A1UdDgQWBBRlScra9o2TFCiyVG+vObxbr5erKDAfBgNVHSMEGDAWgBS7If5bbVoG
1760BEtS6QcGfU6aYDAKBggqhkjOPQQDAgNHADBEAiB9vdYl/QAnWUFsn4iJkPqt
n6JSuxGw6FHCq+r688fYpQIgf8HvDJnCfl0mpSGn5WSFdOZYG9TuEyFqCSP9L95P
6ZE=
-----END CERTIFICATE-----
"""
"""A key and its certificate for localhost by that authority, made for these tests and good until 2126."""

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server.pem").write_text(SERVER)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem")
    with answering(tls) as server:
        server.status = 404
        yield server


def test_a_certificate_that_nobody_vouches_for(secure: Server) -> None:
    environ = KEYS | {"AWS_ENDPOINT_URL": f"https://localhost:{secure.server_port}"}
    with pytest.raises(FinetuneError, match="its TLS certificate is not trusted") as caught:
        open_folder("s3://corp/models", prefix="", environ=environ).read("a")
    assert caught.value.reason is Reason.StorageUnavailable
    assert "SSL_CERT_FILE" in caught.value.hint


def test_an_authority_of_ones_own(secure: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundle.pem").write_text(AUTHORITY)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    environ = KEYS | {"AWS_ENDPOINT_URL": f"https://localhost:{secure.server_port}"}
    assert not open_folder("s3://corp/models", prefix="", environ=environ).exists("a")


def test_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status, server.requests = 404, 0
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    environ = KEYS | {"AWS_ENDPOINT_URL": "http://store.invalid:9000"}
    assert not open_folder("s3://corp/models", prefix="", environ=environ).exists("a")
    assert server.requests == 1


def test_a_name_that_nobody_knows() -> None:
    environ = KEYS | {"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}
    with pytest.raises(FinetuneError, match="its name cannot be resolved") as caught:
        open_folder("s3://corp/models", prefix="", environ=environ).read("a")
    assert caught.value.reason is Reason.StorageUnavailable
