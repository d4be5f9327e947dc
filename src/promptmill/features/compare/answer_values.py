"""Values of answers: when two values are the same, and how similar different values are.

Values are texts, as `core.values.text_of` returns them. The kind of a column depends on all of its values.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal, TypeAlias

import orjson

from promptmill.core.errors import Named, input_error
from promptmill.core.values import composed, json_text, with_whole_numbers

Kind: TypeAlias = Literal["text", "number", "list"]
LABEL = 30
"""The most characters of a value in the heading of a column or line."""
SIMILARITY = "mean F1 of the words in common, or of the items of lists (SQuAD)"
# Numbers as texts. "007" is a name, not a number; a number with more than 31 digits is no measurement.
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,30})(\.\d{1,30})?([eE][+-]?\d{1,2})?")
_MIDNIGHT = re.compile(r"(\d{4}-\d\d-\d\d)[T ]00:00:00(\.0+)?")
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts without spaces: each character counts as a word
_WORD = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest difference of two numbers that count as the same: an amount, or a share of the larger number."""

    amount: Decimal = Decimal()
    is_share: bool = False

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Read `0.01` or `1%`. Raises `PromptmillError` (`invalid_input`).

        >>> Tolerance.parse("1%").allows("200", "198")
        True
        """
        number, percent, rest = text.strip().partition("%")
        with contextlib.suppress(InvalidOperation):
            amount = Decimal(number.strip())
            if amount.is_finite() and amount >= 0 and not rest:
                return cls(amount / 100 if percent else amount, bool(percent))
        raise input_error(
            Named("tolerance"), f" {text[:20]!r} is neither an amount such as 0.01 nor a share such as 1%."
        )

    def allows(self, value: str, other: str) -> bool:
        """Return whether two numbers count as the same."""
        ours, theirs = Decimal(value), Decimal(other)
        most = self.amount * max(abs(ours), abs(theirs)) if self.is_share else self.amount
        return abs(ours - theirs) <= most


def kind_of(values: Iterable[str]) -> Kind:
    """Return the kind that fits all `values` except `""`.

    >>> kind_of(["12.50", "7"]), kind_of(["007", "7"]), kind_of(['["a"]', '[]'])
    ('number', 'text', 'list')
    """
    kinds: set[Kind] = set()
    for value in values:
        if not value:
            continue
        if _NUMBER.fullmatch(value):
            kinds.add("number")
        elif value.startswith("[") and items(value) is not None:
            kinds.add("list")
        else:
            return "text"
        if len(kinds) > 1:
            return "text"
    return kinds.pop() if kinds else "text"


def items(value: str) -> list[str] | None:
    """Return the items of a JSON list as texts; None for any other text."""
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, list):
        return None
    return [item if isinstance(item, str) else json_text(with_whole_numbers(item), sort_keys=True) for item in found]


def canonical(value: str, kind: Kind) -> str:
    """Return the canonical text of a value. Values that count as the same without a tolerance have the same text.

    Dates with the time 00:00, as in Parquet and pandas, become dates alone. Texts get one Unicode form.

    >>> canonical("12.50", "number"), canonical('["b","a","b"]', "list"), canonical("2026-01-05T00:00:00", "text")
    ('12.5', '["a","b"]', '2026-01-05')
    >>> canonical("[2.0,1.5]", "list"), canonical("[1.5,2]", "list")
    ('["1.5","2"]', '["1.5","2"]')
    """
    value = composed(value)
    if not value or kind == "text":
        return day[1] if (day := _MIDNIGHT.fullmatch(value)) else value
    if kind == "number":
        text = f"{Decimal(value):f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if text in {"-0", "+0", ""} else text
    return orjson.dumps(sorted(set(items(value) or ()))).decode()


def similarity(value: str, other: str, kind: Kind) -> float:
    """Return the F1 of the words of two texts, or of the items of two lists, ignoring case and punctuation.

    P. Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, EMNLP 2016, section 6.1.

    >>> similarity("The food was cold.", "Cold food", "text")
    0.6666666666666666
    """
    if kind == "list":
        ours, theirs = Counter(set(items(value) or ())), Counter(set(items(other) or ()))
    else:
        ours, theirs = (Counter(_WORD.findall(text.casefold())) for text in (value, other))
    size = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / size if size else 1.0
