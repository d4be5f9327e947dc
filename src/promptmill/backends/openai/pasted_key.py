"""Keys as people paste them: what came along that is no part of the key is told before anything is sent."""

from __future__ import annotations

import re

_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_ASSIGNED = re.compile(r"(?:export\s|set\s|\$env:)|[a-z_]*(?:KEY|TOKEN|SECRET)\s*=\s*\S", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_(?:KEY|TOKEN|SECRET)")
_PLACEHOLDER = re.compile(
    r"<.*>|\[.*\]|.*(?:\.\.\.|\u2026).*|(?:sk-)?(?:x{3,}|\*{3,})"
    r"|(?:sk-)?(?:your|my|insert|replace|paste)[-_ ].*(?:key|token|secret|here)"
    r"|.*(?:api[-_ ]?key|key[-_ ]?here|changeme)",
    re.IGNORECASE,
)


def problem(key: str) -> str:
    """Return what is wrong with a key, already stripped, that no endpoint can have given like this; `""` if nothing."""
    if key[:1] in _QUOTES or key[-1:] in _QUOTES:
        curly = " of a web page" if not key[0].isascii() or not key[-1].isascii() else ""
        return f"has quotes{curly} around it that are not part of the key; remove them."
    if re.match(r"bearer\s", key, re.IGNORECASE):
        return "begins with `Bearer `, which is not part of the key and is sent anyway; leave it out."
    if _ASSIGNED.match(key):
        return "holds a whole assignment, NAME=KEY; keep only what is behind the equals sign."
    if "\n" in key or "\r" in key:
        return "holds more than one line; keep the key alone."
    if not key.isascii() or not key.isprintable():
        return "holds a character that no key can have, such as a curly quote or a dash of a web page; copy it again."
    return ""


def is_variable(key: str) -> bool:
    """Return whether `key` is the name of the environment variable that holds one, such as `OPENAI_API_KEY`."""
    return _VARIABLE.fullmatch(key) is not None and not key.startswith(("YOUR", "MY_"))


def is_placeholder(key: str) -> bool:
    """Return whether `key` is what an example shows in a key's place, such as `sk-...` or `YOUR_API_KEY`."""
    return len(key) < 60 and _PLACEHOLDER.fullmatch(key) is not None
