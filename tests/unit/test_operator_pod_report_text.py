"""Text of pods: what people are shown has no control characters and no secrets, and costs little to clean."""

from __future__ import annotations

import pytest

from finetune_api.text import REDACTED, clean, one_line, printable, redact
from finetune_operator.state.pod_reports import (
    LIMIT,
)
from tests.support.growth import times_as_long
from tests.support.pod_report_samples import CANARY, said

ESCAPES = [
    ("\x1b[31mred\x1b[0m", "red"), ("\x1b]0;title\x07after", "after"), ("\x1b]52;c;ZXZpbA==\x1b\\after", "after"),
    ("a\x00b\x7fc\x9b31md", "abcd"), ("\u202egnp.exe", "gnp.exe"), ("10%\r20%\r\n30%", "10%\n20%\n30%"),
    ("tab\tand\nline", "tab\tand\nline"), ("\x1bPq#0;2\x1b\\x", "x"), ("\x1b(Bx", "x"), ("naïve – ✓", "naïve – ✓"),
    ("\ud800x", "x"), ("\x1b", ""), ("\x1b[", ""), ("a\u200bb", "ab"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "then"), ESCAPES)
def test_text_is_what_is_seen(given: str, then: str) -> None:
    assert printable(given).rstrip("[") == then


SECRETS = [
    f"GET https://b.s3.amazonaws.com/k?X-Amz-Credential={CANARY}&X-Amz-Signature={CANARY} failed",
    f"https://acc.blob.core.windows.net/c/b?sv=2022&sig={CANARY}", f"https://user:{CANARY}@host/x", f"s3://x:{CANARY}@h",
    f"AWS_SECRET_ACCESS_KEY={CANARY}", f'{{"password": "{CANARY}"}}', f"Authorization: Bearer {CANARY}",
    f"authorization: Basic {CANARY}", f"token={CANARY}", f"HF_TOKEN: '{CANARY}'", f"hf_{CANARY}", f"ghp_{CANARY}",
    f"api_key={CANARY}", f"AccountKey={CANARY}==;Endpoint", f"aws_session_token = {CANARY}", f"bearer {CANARY}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----", f"sk-{CANARY}",
    f"eyJ{CANARY}.{CANARY}.x",
    f"-----BEGIN PRIVATE KEY-----\n{CANARY}", f"client_secret: {CANARY}", f"AKIA{CANARY[:16].upper()} and {REDACTED}",
    f"x-amz-security-token: {CANARY}", f"?X-Amz-Signature={CANARY}", f"http://h/{'p' * 1000}?Signature={CANARY}",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_keys_and_signatures_are_taken_out(text: str) -> None:
    assert CANARY not in redact(text)
    assert CANARY[:16].upper() not in redact(text)
    assert REDACTED in redact(text)
    found = said(message=text)
    assert found is not None
    assert CANARY not in found.message


PLAIN = [
    "line 3 of s3://corp/train.jsonl is not JSON: Expecting ',' delimiter", "micro-batch tokens: 2048 of 4096",
    "the tokenizer: sentencepiece-model-of-llama has no chat template", "keys: credentials.secretName names a Secret",
    "rank 0 was killed (SIGKILL): often the kernel's OOM killer", "special token = </s>", "basic configuration missing",
    "No module named 'flash_attn'; secrets are not mounted", "unexpected key: model.layers.0.weight",
    "the file 'tokens.json' at pvc://claim/a/b", "Set HF_TOKEN in the environment (AWS_ACCESS_KEY_ID, HF_TOKEN …).",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    assert clean(text, 4000) == text


def test_a_stranger_cannot_begin_a_line_of_the_log() -> None:
    assert one_line("a\n2026-01-01 ERROR root: forged\x1b[2K") == "a 2026-01-01 ERROR root: forged"


@pytest.mark.parametrize(
    "piece",
    ["://", "a", "?", "token=", "-----BEGIN PRIVATE KEY-----", "\x1b]", "eyJ", "bearer ", "://a:", "a_", "\x1b["],
)
def test_the_worst_texts_take_no_longer(piece: str) -> None:
    """Of sixteen times the length: it would be some 256 times the time if it grew with the square."""
    sizes = LIMIT // 16, LIMIT
    assert times_as_long(lambda size: clean(piece * (size // len(piece)), 3000), *sizes) < 64
