"""The wait that an error response requests: in headers, in fields of the body, or in its text.

Formats: RFC 9110, 10.2.3 (Retry-After), OpenAI's `retry-after-ms` and `x-ratelimit-reset-*`, Google's `RetryInfo`,
OpenRouter's `metadata.headers`, the IETF draft `RateLimit`; tests/backends/openai/evidence.jsonl has examples of each.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from promptmill.backends.openai.error_body import fields_of

_UNITS = {
    "ms": 0.001, "msec": 0.001, "millisecond": 0.001, "毫秒": 0.001,
    "s": 1, "sec": 1, "second": 1, "秒": 1, "秒钟": 1,
    "m": 60, "min": 60, "minute": 60, "分": 60, "分钟": 60,
    "h": 3600, "hr": 3600, "hour": 3600, "小时": 3600,
    "d": 86400, "day": 86400, "天": 86400,
}  # fmt: skip
_UNIT = (
    "(?:" + "|".join(f"{unit}s?" if unit.isascii() else unit for unit in sorted(_UNITS, key=len, reverse=True)) + ")"
)
_QUANTITY = rf"\d+(?:\.\d+)?\s*{_UNIT}(?![a-z])"
_SPAN = re.compile(rf"(?<![a-zA-Z0-9.]){_QUANTITY}(?:(?:\s|,|and)*{_QUANTITY})*", re.IGNORECASE)
_PART = re.compile(rf"(?<!\d)(\d+(?:\.\d+)?)\s*({_UNIT})(?![a-z])", re.IGNORECASE)
_CLOCK = re.compile(
    r"(?<![\d:.])(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2})(?:\.\d+)?(?![\d:])"
)  # .NET: days.hours:minutes:seconds
_DATE = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:T|\s+(?:at\s+)?)\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s*(?:Z|UTC|GMT|[+-]\d{2}:?\d{2})?",
    re.IGNORECASE,
)
# A time in a text counts as a wait only if one of these words precedes it in the same sentence.
_ASKING = re.compile(
    r"(?:again|retry|wait|reset|replenish|available|access|cool ?down|delay|until|请|等待|恢复|重置|解除)",
    re.IGNORECASE,
)
_SENTENCE_ENDS = re.compile("[.!?;。]")
_ASKING_BEHIND = re.compile(r"\s*(?:later|from now|后|重置|恢复|before (?:re)?trying)", re.IGNORECASE)
_BARE = re.compile(
    rf"(?:retry|try again|wait)[^.;\d]{{0,20}}?(?<![a-zA-Z0-9.])(\d+(?:\.\d+)?)(?![\d:/-]|\.\d|\s*{_UNIT}(?![a-z]))",
    re.IGNORECASE,
)
_NEAR = 60

_RESET = re.compile(r"(?:x-|anthropic-)?ratelimit-(?:(.+)-)?reset(?:-(.+))?|x-ratelimit-reset-?(.*)")
# The unit, in seconds, of each body field. Names are in lower case, without separators. None if `_span_s` finds it.
_FIELDS: Mapping[str, float | None] = {
    "retrydelay": None, "retryafter": None, "retryafterseconds": 1, "retryaftersec": 1, "retryafterms": 0.001,
    "retryin": None, "retryinseconds": 1, "retryinms": 0.001, "estimatedtime": 1, "waitseconds": 1, "waittime": None,
    "waitms": 0.001, "cooldownseconds": 1, "resetat": None, "resetsat": None, "resettime": None, "resetsin": None,
    "resetin": None, "resetafter": None, "resetsinseconds": 1, "resetinseconds": 1, "resetseconds": 1,
    "resetafterseconds": 1, "ratelimitreset": None, "xratelimitreset": None, "quotaresettime": None,
    "resettimestamp": None, "quotaresetdelay": None,
}  # fmt: skip
# Pairs of response headers that report a limit: one has the remaining amount, the other the time of the reset.
_LIMITS = (
    *((f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}") for what in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
_MILLISECONDS = ("retry-after-ms", "x-ms-retry-after-ms")  # OpenAI; Azure
_NONSENSE_S = 100 * 365 * 86400.0


def asked_wait_s(headers: Mapping[str, str], payload: Any, text: str) -> float | None:
    """Return the seconds that a response asks to wait, or None. `payload`: the parsed body. `text`: the raw body."""
    now = time.time()
    for wait in (
        _retry_after_s(headers, now),
        _from_fields(payload, now),
        _from_words(text, now),
        _from_resets(headers, now),
    ):
        if wait and wait < _NONSENSE_S:
            return wait
    return 0.0 if "Retry-After" in headers or "retry-after-ms" in headers else None


def exhausted_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until a used-up limit is reset, according to `headers`; None if no limit is used up."""
    waits: list[float] = []
    for remaining, resets in _LIMITS:
        if headers.get(remaining) == "0":
            reset = headers.get(resets)
            wait = None if reset is None else _span_s(reset, None, time.time())
            waits += [] if wait is None else [wait]
    return max(waits) if waits else None


def _retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the wait in `retry-after-ms` or `Retry-After`: seconds, a time (Unix or a date), or a span (`1m30s`)."""
    for name in _MILLISECONDS:
        if (milliseconds := _number(headers.get(name))) is not None:
            return milliseconds / 1000
    text = headers.get("Retry-After")
    if text is None:
        return None
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        # a proxy joins the values of two headers by a comma; the longer wait satisfies both
        waits = [_span_s(value.strip(" \"'"), None, now) for value in text[:200].split(",")]
        return max((wait for wait in waits if wait is not None), default=None)


def _from_fields(payload: Any, now: float) -> float | None:
    waits: list[float] = []
    for name, value in fields_of(payload):
        word = re.sub(r"[^a-z]", "", name.lower())
        if word == "headers" and isinstance(value, Mapping):
            nested = {str(key).lower(): str(inner) for key, inner in value.items()}
            waits += filter(None, (_number(nested.get("retry-after")), _from_resets(nested, now)))
        elif word in _FIELDS and (wait := _span_s(value, _FIELDS[word], now)) is not None:
            waits.append(wait)
    return max(waits, default=None)


def _span_s(value: Any, unit_s: float | None, now: float) -> float | None:
    """Return the seconds from now for the value of a field or header: a span, seconds, or a time (Unix or a date)."""
    if isinstance(value, Mapping):  # google.protobuf.Duration as an object
        return _number(value.get("seconds"))
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    number = _number(value)
    if number is not None:
        if unit_s is not None:
            return number * unit_s
        if number > 1e11:  # milliseconds since 1970
            number /= 1000
        return max(0.0, number - now) if number > 1e9 else number
    text = str(value).strip()
    if text[:2].upper() == "PT":  # ISO 8601
        text = text[2:]
    if _SPAN.fullmatch(text):
        return _span_sum_s(text)
    if match := _CLOCK.fullmatch(text):
        return _clock_s(match)
    return _until_s(text, now)


def _from_words(text: str, now: float) -> float | None:
    waits: list[float] = []
    for pattern in (_SPAN, _CLOCK, _DATE):
        for match in pattern.finditer(text):
            before, behind = text[max(0, match.start() - _NEAR) : match.start()], text[match.end() : match.end() + 24]
            if not (_ASKING.search(_SENTENCE_ENDS.split(before)[-1]) or _ASKING_BEHIND.match(behind)):
                continue
            if pattern is _SPAN:
                waits.append(_span_sum_s(match[0]))
            elif pattern is _CLOCK:  # after "in" or "after", this is a wait; otherwise it is a time of day
                waits += [_clock_s(match)] if before.endswith((" in ", " after ")) else []
            elif (wait := _until_s(match[0], now, local=not text.isascii())) is not None:
                waits.append(wait)
    if not waits and (bare := _BARE.search(text)):
        waits.append(float(bare[1]))
    return max(waits, default=None)


def _from_resets(headers: Mapping[str, str], now: float) -> float | None:
    """Return the wait until the reset of the limit of which the smallest share is left, according to the headers."""
    lower = {name.lower(): value for name, value in headers.items()}
    if match := re.search(r"\b(?:t|reset)=(\d+)", lower.get("ratelimit", "")):
        return float(match[1])
    nearest: tuple[float, float] | None = None
    for name, value in lower.items():
        matched = _RESET.fullmatch(name)
        wait = _span_s(value, None, now) if matched else None
        if wait is None:
            continue
        left, most = (_number(lower.get(name.replace("reset", what))) for what in ("remaining", "limit"))
        share = math.inf if left is None else left / most if most else left
        if nearest is None or (share, -wait) < (nearest[0], -nearest[1]):
            nearest = share, wait
    return nearest[1] if nearest else None


def _until_s(text: str, now: float, *, local: bool = False) -> float | None:
    """Return the seconds until the date `text`. `local`: a date without a time zone is China's local time."""
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    clean = " ".join(part for part in match[0].upper().split() if part != "AT")
    for zone in ("UTC", "GMT", "Z"):
        if clean.endswith(zone):
            clean = clean.removesuffix(zone).rstrip() + "+00:00"
    try:
        when = datetime.fromisoformat(clean.replace(" +", "+"))
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=timezone(timedelta(hours=8)) if local else UTC)
    return max(0.0, when.timestamp() - now)


def _span_sum_s(text: str) -> float:
    return sum(float(number) * _unit_s(unit) for number, unit in _PART.findall(text))


def _unit_s(unit: str) -> float:
    unit = unit.lower()
    return _UNITS.get(unit) or _UNITS[unit.removesuffix("s")]


def _clock_s(match: re.Match[str]) -> float:
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else max(0.0, number)
