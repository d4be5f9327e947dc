"""Recognizes texts that cannot be keys: mistakes in copying and typing, names of variables, and placeholders."""

from __future__ import annotations

import re

# Quotation marks that users paste around keys by mistake.
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_ASSIGNED = re.compile(r"(?:export\s|set\s|\$env:)|[a-z_]*(?:KEY|TOKEN|SECRET)\s*=\s*\S", re.IGNORECASE)
_KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*_(?:KEY|TOKEN|SECRET)")
_PLACEHOLDER = re.compile(
    r"<.*>|\[.*\]|.*(?:\.\.\.|\u2026).*|(?:sk-)?(?:x{3,}|\*{3,})"
    r"|(?:sk-)?(?:your|my|insert|replace|paste)[-_ ].*(?:key|token|secret|here)"
    r"|.*(?:api[-_ ]?key|key[-_ ]?here|changeme)",
    re.IGNORECASE,
)


def key_problem(key: str) -> str:
    """Return the mistake in a copied or typed key (already stripped); `""` if there is none."""
    if key[:1] in _QUOTES or key[-1:] in _QUOTES:
        curly = " of a web page" if not key[0].isascii() or not key[-1].isascii() else ""
        return f"is enclosed in quotes{curly} that are not part of the key; remove them."
    if re.match(r"bearer\s", key, re.IGNORECASE):
        return "begins with `Bearer `, which is not part of the key and is added automatically; leave it out."
    if _ASSIGNED.match(key):
        return "contains a whole assignment, NAME=KEY; keep only the part after the equals sign."
    if "\n" in key or "\r" in key:
        return "contains more than one line; keep only the key."
    if not key.isascii() or not key.isprintable():
        return "contains a character that no key has, such as a curly quote or a dash from a web page; copy it again."
    return ""


def names_key_variable(key: str) -> bool:
    """Return whether `key` is the name of an environment variable for a key, such as `OPENAI_API_KEY`."""
    return _KEY_VARIABLE.fullmatch(key) is not None and not key.startswith(("YOUR", "MY_"))


def is_placeholder_key(key: str) -> bool:
    """Return whether `key` is a placeholder from an example, such as `sk-...` or `YOUR_API_KEY`."""
    return len(key) < 60 and _PLACEHOLDER.fullmatch(key) is not None
