"""Rows drawn at random from a file: a sample, in which topics are found, and held-out rows, on which they are tried."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from promptmill.core.errors import input_error
from promptmill.core.values import JsonObject, text_of
from promptmill.core.wording import counted
from promptmill.jobs.inputs.question_columns import text_column
from promptmill.jobs.rows.template import check_names_some, columns_of

FEWEST = 50
"""The fewest rows with text. With fewer, the sample misses topics that a row in ten has, and a person can read all."""
_TIMES, _MOST_COVERED = 5, 2_000
"""Sample and pool together have 5 times as many rows as the sample, but at most 2,000: their vectors take 25 s."""
_LOOKED_AT = 100  # the fields of this many first rows are the columns, as for a job
_SEED = "promptmill topics"  # fixed, so that the same command draws the same rows and pays for nothing again


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row with text."""

    number: int
    """The number of the row in the input, from 1."""
    cells: JsonObject
    """The cells that the prompt names."""

    @property
    def texts(self) -> list[str]:
        """The texts of the cells, with white space replaced by single spaces."""
        return [" ".join(text_of(cell).split()) for cell in self.cells.values()]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The drawn rows of an input."""

    rows: int
    """The number of rows of the input, including `empty` rows."""
    empty: int
    """The number of rows without text in any cell that the prompt names."""
    sample: Sequence[DrawnRow]
    """Random rows in which topics are found."""
    held_out: Sequence[DrawnRow]
    """Rows on which topics are tried."""
    fresh: Sequence[DrawnRow]
    """Further rows. Topics that were found in held-out rows are tried on these rows."""
    pool: Sequence[DrawnRow] = ()
    """Further random rows, some of which may be chosen."""
    chosen: Sequence[DrawnRow] = ()
    """Rows of an earlier pool that differ from the sample and from each other; topics are found in them, too."""
    covered: int = 0
    """The number of rows in the sample, and in the pool from which rows were chosen, together."""
    seed: str = _SEED
    """The seed of all random choices of the search."""

    @classmethod
    def of(cls, rows: Iterable[JsonObject], prompt: str, sample: int, held_out: int, *, seed: str = _SEED) -> Drawn:
        """Draw `sample` rows, `held_out` other rows, as many fresh rows, and a pool. If fewer than `sample + held_out`
        rows have text, draw all of them, and divide them in the same proportion, with at least one row in each part.
        Then, there are no fresh rows and no pool. Only the drawn rows are kept in memory.

        Raises `PromptmillError` (`invalid_input`) for a prompt that names no column of the input, and for fewer than
        `FEWEST` rows with text.
        """
        every = iter(rows)
        first = list(itertools.islice(every, _LOOKED_AT))
        names = list(dict.fromkeys(name for row in first for name in row))
        check_names_some(prompt, lambda: "", lambda: text_column(names, first, "text"))
        if not first:
            raise input_error("The input has no rows.")
        columns = columns_of(prompt, names)
        end_of_fresh, pool = sample + 2 * held_out, max(0, min(_TIMES * sample, _MOST_COVERED) - sample)
        numbers, count, empty = random.Random(seed), 0, 0  # noqa: S311 (no secret)

        def keyed() -> Iterator[tuple[float, DrawnRow]]:
            nonlocal count, empty
            for count, row in enumerate(itertools.chain(first, every), 1):
                key = numbers.random()
                kept = DrawnRow(count, {name: row[name] for name in columns if name in row})
                if any(kept.texts):
                    yield key, kept
                else:
                    empty += 1

        drawn = [row for _, row in heapq.nsmallest(end_of_fresh + pool, keyed(), key=lambda pair: pair[0])]
        usable = count - empty
        if usable < FEWEST:
            left_out = f", and {counted(empty, 'empty one')}" if empty else ""
            raise input_error(
                f"The input has {counted(usable, 'row')} with text{left_out}: with fewer than {FEWEST}, neither topics "
                "nor their shares can be told; read them, or name a larger file."
            )
        if usable < sample + held_out:
            sample = max(1, usable * sample // (sample + held_out))  # always less than `usable`
            return cls(count, empty, drawn[:sample], drawn[sample:], (), seed=seed)
        end = sample + held_out
        fresh, rest = drawn[end:end_of_fresh], drawn[end_of_fresh:]
        return cls(count, empty, drawn[:sample], drawn[sample:end], fresh, rest, seed=seed)

    @property
    def is_all(self) -> bool:
        """Whether all rows with text are in the sample or held out."""
        return len(self.sample) + len(self.held_out) == self.rows - self.empty
