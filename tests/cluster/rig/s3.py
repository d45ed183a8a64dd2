"""The S3 server (MinIO): where it is, its keys, and what tests do with it. Buckets are made by a signed PUT of our
own, since obstore, which the trainer uses for everything else, cannot make one."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from .process import Program
from .state import Paths, State

REGION = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class S3:
    """An S3 server. While the rig has a node the endpoint is the bridge's address: the same for the host and for
    pods."""

    endpoint: str
    key: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that clients read, also as the content of a credentials Secret."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true",
        }

    def bucket(self, prefix: str = "test") -> str:
        """Makes a new bucket and returns its name."""
        return self.named(f"{prefix}-{secrets.token_hex(4)}")

    def named(self, bucket: str) -> str:
        """Makes the bucket of this name."""
        self._request("PUT", f"/{bucket}")
        return bucket

    def store(self, bucket: str) -> Any:
        """An obstore store of the bucket."""
        from obstore.store import S3Store

        return S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=self.key,
            secret_access_key=self.secret,
            region=REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def secret_manifest(self, name: str, namespace: str) -> dict[str, Any]:
        """The Secret that a FineTuneJob's `credentials: {secretName: NAME}` refers to."""
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": self.environment}

    def _request(self, method: str, path: str) -> None:
        """A request without a body, signed by AWS's version 4."""
        host = urllib.parse.urlsplit(self.endpoint).netloc
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        empty = hashlib.sha256(b"").hexdigest()
        headers = {"host": host, "x-amz-content-sha256": empty, "x-amz-date": now}
        signed = ";".join(headers)
        canonical = "\n".join([method, path, "", *(f"{n}:{v}" for n, v in headers.items()), "", signed, empty])
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = f"AWS4{self.secret}".encode()
        for part in (now[:8], REGION, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        credential = f"Credential={self.key}/{scope}, SignedHeaders={signed}, Signature={signature}"
        headers["Authorization"] = f"AWS4-HMAC-SHA256 {credential}"
        request = urllib.request.Request(self.endpoint + path, method=method, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30):
            pass


def minio(paths: Paths, state: State, *, address: str) -> Program:
    """The server's command line; `address` is loopback, or the bridge's once there is a node."""
    listen = f"{address}:{state.ports['minio']}"
    return Program(
        name="minio",
        argv=(str(paths.bin / "minio"), "server", str(paths.state / "s3"), "--address", listen, "--quiet"),
        env={
            "MINIO_ROOT_USER": state.s3_key,
            "MINIO_ROOT_PASSWORD": state.s3_secret,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CALLHOME_ENABLE": "off",
        },
        probe=f"http://{listen}/minio/health/live",
    )
