"""Sanitizes untrusted text for a status, a log line or a terminal. Pure, in linear time."""

from __future__ import annotations

import re

REDACTED = "[redacted]"

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|[ -/]{0,8}[0-~])"
    r"|\x9b[0-?]{0,64}[ -/]{0,8}[@-~]"
)
"""Escape sequences, which move a terminal's cursor, color it, or write into its title and clipboard."""

_HIDDEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, and those that reorder or hide others."""

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)", re.S),
        REDACTED,
    ),
    # what comes after a URL's question mark: a signature, if it was signed
    (re.compile(r"(?<=://)([^\s?\"'<>]{1,2048}+)\?[^\s\"'<>]+"), rf"\1?{REDACTED}"),
    (re.compile(r"(?<=://)[^/\s:@\"'<>]{0,256}:[^/\s@\"'<>]{1,256}@"), f"{REDACTED}@"),
    (
        re.compile(
            r"(?i)((?:proxy-)?authorization[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:bearer|basic|token|aws4-hmac-sha256)?\s{0,4})"
            r"[^\s\"']{6,}"
        ),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(
            r"(?i)((?<![a-z])(?:x-amz-signature|x-amz-security-token|x-amz-credential|x-goog-signature|password|passwd"
            r"|secret|secret[_-]?(?:access[_-]?)?key|(?:access|account|api|private|shared|storage)[_-]?key"
            r"(?:[_-]?id)?|awsaccesskeyid|(?:access|api|auth|bearer|hf|id|refresh|sas|security|session)[_-]?token|token"
            r"|client[_-]?secret|signature|sig)[\"']?\s{0,2}[:=]\s{0,2}[\"']?)[^\s\"',;&<>]{8,}"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer\s{1,4})[A-Za-z0-9+/_.~=-]{12,}"), rf"\1{REDACTED}"),
    (
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
            r"|glpat-[\w-]{16,}|sk-[\w-]{20,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}"
            r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{0,2048})"
        ),
        REDACTED,
    ),
)
"""Credentials, recognized by name or by form."""


def redact(text: str) -> str:
    """Replaces keys, signatures and passwords."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def printable(text: str) -> str:
    """Removes terminal escapes and hidden characters; keeps line breaks and tabs."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _HIDDEN.sub("", text)


def clip(text: str, limit: int) -> str:
    """Shortens text to `limit` characters by cutting the middle."""
    if len(text) <= limit:
        return text
    head = (limit - 3) // 2
    return f"{text[:head]} … {text[len(text) - (limit - 3 - head) :]}"


def clean(text: str, limit: int) -> str:
    """Returns printable, redacted text of at most `limit` characters."""
    if not text:
        return ""
    most = 4 * limit + 4096  # a secret that is cut in two would not be known for one
    return clip(redact(printable(clip(text, most))), limit)


def one_line(text: object, limit: int = 200) -> str:
    """Returns one line for a log, so that untrusted text cannot forge another line."""
    return " ".join(clean(str(text), limit).split())
