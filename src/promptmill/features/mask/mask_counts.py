"""The number of masked values of each kind, kept with each answer of a job and added up in its status."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from typing_extensions import TypedDict

from promptmill.core.request import SYSTEM_ROLES, Request
from promptmill.core.wording import counted
from promptmill.features.mask.masks import Masks
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.records import SLOT
from promptmill.jobs.store.statistics import DELIVERED

COUNTS = "masks"
"""The field of a record's details with the counts of its row: the name of the figure, see `documents.long_rows`."""
_LIKE_PHONE = "?"
_NATIONAL = re.compile(
    r"(?<![\w+.,:/-])\(?0[1-9]\d{1,4}(?:\)?[ /-]{1,3}\d(?:[ /-]?\d){4,9}|\d{6,9})(?![\w:]|[.,/-]\d)", re.ASCII
)
"""A number that may be a phone number of some country: a code with its 0, and more digits. No date has this form."""
_SUMS = f"""
    SELECT its.key, total(its.value), total(its.value > 0) FROM answer, json_each(more, '$.details.{COUNTS}') AS its
    WHERE {DELIVERED} AND answer.key % {SLOT} < ? AND instr(more, '"{COUNTS}":') GROUP BY its.key
"""  # noqa: S608 (fixed texts)


class MaskCounts(TypedDict):
    """The values that were masked in the rows of a job."""

    values: dict[str, int]
    """The number of values by kind, in lower case; a value counts once in each row."""
    like_phones: int
    """Rows with digits that may be a phone number without the code of its country, which is not masked."""


def counts_of(sent: Request, masks: Masks, *, has_countries: bool) -> dict[str, int]:
    """Return the counts of a row's request. `has_countries`: numbers without the code of a country are masked, too, or
    no phone number is."""
    counts = Counter(masks.labels)
    if not has_countries:
        rows = (message.content for message in sent.conversation.messages if message.role not in SYSTEM_ROLES)
        counts[_LIKE_PHONE] = int(any(isinstance(text, str) and _NATIONAL.search(text) for text in rows))
    return {kind: count for kind, count in counts.items() if count}


def counts_in(store: JobDatabase, before: int) -> MaskCounts:
    """Return the counts of the rows below `before`. Blocks."""
    found = {str(kind): (int(values), int(rows)) for kind, values, rows in store.read(_SUMS, before)}
    _, like_phones = found.pop(_LIKE_PHONE, (0, 0))
    return MaskCounts(values={kind.lower(): values for kind, (values, _) in found.items()}, like_phones=like_phones)


def words_of(counts: Mapping[str, object]) -> Iterator[str]:
    """Yield the counts as text.

    >>> [*words_of({"values": {"name": 40, "phone": 1}, "like_phones": 14})]
    ['40 names, 1 phone', '14 rows have digits like a phone; name their country, such as phone:DE']
    """
    values, rows = counts.get("values"), counts.get("like_phones")
    if isinstance(values, Mapping) and values:
        yield ", ".join(counted(count, kind) for kind, count in sorted(values.items(), key=lambda pair: -pair[1]))
    if isinstance(rows, int) and rows:
        has = "has" if rows == 1 else "have"
        yield f"{counted(rows, 'row')} {has} digits like a phone; name their country, such as phone:DE"
