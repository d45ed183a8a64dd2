"""How kopf is started."""

from __future__ import annotations

import asyncio
import getpass
from typing import Any

import pytest

from finetune_operator.kube.connection import Connection
from finetune_operator.kube.kopf_watch import Watcher


def test_the_operator_runs_as_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As user 65532 of the image, and as any user ID that OpenShift assigns."""

    def no_such_user() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    def nothing(*_: Any) -> None:
        pass

    class NoToken:
        async def get_api_key_with_prefix(self, _: str) -> str:
            return ""

    monkeypatch.setattr(getpass, "getuser", no_such_user)
    connection = Connection(server="http://127.0.0.1:1", ssl_context=None, configuration=NoToken())
    watcher = Watcher(connection=connection, namespaces=("ml",), fed=nothing, listed=nothing, seen=nothing)
    watcher._stop.set()
    assert "uid not found" not in asyncio.run(watcher._until_it_ends())
