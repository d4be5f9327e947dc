"""`--long-to MODEL`: rows with an answer of more than 500 characters are asked again at MODEL, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from promptmill.jobs.store.plan import Plan
from promptmill.jobs.store.rounds import ANSWERED, Round
from promptmill.options.option import Flag, Option

OPTIONS = (Option("long_to", str, "the model that answers rows with long answers again", flag=Flag(metavar="MODEL")),)
_IS_FIRST = "answer.round NOT IN (SELECT id FROM round WHERE value ->> '$.rows' = 'long')"


class LongAgain(Plan):
    """Sends each row with a long answer again, after all others."""

    rules: ClassVar[Mapping[str, str]] = {"long": f"({ANSWERED} AND length(answer.text) > 500 AND {_IS_FIRST})"}
    model: str

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> LongAgain | None:
        """Return the plan of the option; None without it."""
        del models
        return cls(model=options["long_to"]) if options.get("long_to") else None

    @property
    def named_models(self) -> frozenset[str]:
        return frozenset({self.model})

    def next(self, first: Round, again: Any) -> Iterator[Round]:
        """Yield the rounds of an ordinary job, then one of long answers."""
        yield from super().next(first, again)
        yield replace(first, rows="long", reason="long", model=self.model)
