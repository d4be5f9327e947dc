"""The formats of texts that are checked if a schema names them: dates and times (RFC 3339).

A time may lack seconds and an offset: a text that says "3 March, 12:00" has neither, and a model must not invent them.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

_TIME = r"\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?"
_FINER = re.compile(r"\.\d{6}\d*[1-9]")
_DATE = r"\d{4}-\d\d-\d\d"


def _reads(pattern: str, read: Callable[[str], object]) -> Callable[[str], bool]:
    matches = re.compile(pattern, re.ASCII | re.IGNORECASE).fullmatch

    def is_valid(text: str) -> bool:
        try:
            return matches(text) is not None and read(text.upper()) is not None
        except ValueError:
            return False

    return is_valid


def date_of(text: str, name: str) -> dt.date | dt.time | None:
    """Return the value of a text in the format `name`, one of `NAMES`; None if it has another form, or nanoseconds.

    >>> date_of("2026-03-04", "date"), date_of("2026-02-30", "date")
    (datetime.date(2026, 3, 4), None)
    """
    if not CHECKS[name](text) or _FINER.search(text):
        return None
    return _READ[name](text.upper())


NAMES: Mapping[str, str] = MappingProxyType(
    {"date": "a date (YYYY-MM-DD)", "date-time": "a date and time (YYYY-MM-DDThh:mm:ss)", "time": "a time (hh:mm:ss)"}
)
"""The formats that are checked, in words."""
_UNCHECKED = (
    *("email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri", "uri-reference", "iri", "iri-reference"),
    *("uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex", "duration"),
)
_READ: Mapping[str, Callable[[str], dt.date | dt.time]] = MappingProxyType(
    {"date": dt.date.fromisoformat, "date-time": dt.datetime.fromisoformat, "time": dt.time.fromisoformat}
)
CHECKS: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        **dict.fromkeys(_UNCHECKED, lambda _: True),
        "date": _reads(_DATE, _READ["date"]),
        "date-time": _reads(f"{_DATE}[T ]{_TIME}", _READ["date-time"]),
        "time": _reads(_TIME, _READ["time"]),
    }
)
"""For each format that the validator knows, the function that returns whether a text has this format."""
