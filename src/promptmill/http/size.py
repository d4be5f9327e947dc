"""Parse sizes such as `64MiB`."""

from __future__ import annotations

import re

from promptmill.core.errors import config_error

_FORM = re.compile(r"([0-9]{1,12})\s*(?:([kmg])(i?)b?|b)?", re.IGNORECASE)
_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_LEAST, _MOST = 64 << 10, 2 << 30


def parse_size(text: str, option: str) -> int:
    """Return the bytes of `64MiB`, `64M` (both 1024² times 64), `64MB` (1000² times) or `67108864`.

    Raises `PromptmillError` (`invalid_config`), also below 64 KiB and above 2 GiB.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise config_error(option, "write a size such as 64MiB.")
    decimal = not found[3] and text.strip().lower().endswith("b")
    size = int(found[1]) * (_DECIMAL if decimal else _BINARY)[(found[2] or "").lower()]
    if not _LEAST <= size <= _MOST:
        raise config_error(option, "should be between 64KiB and 2GiB.")
    return size
