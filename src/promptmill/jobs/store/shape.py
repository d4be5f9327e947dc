"""The shape of an output. It is a part of an order, and divides the answer to a row into several rows of the output.

    record of a row ─▶ Shape.division ─▶ a record for each row of the output, with the fields of Shape.output_schema

Only outputs have a shape. Everything else in a job (resuming, costs, reviews, comparisons) is about rows of the
input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from promptmill.core.errors import Named, input_error
from promptmill.core.values import JsonDict, JsonObject
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.order_part import OrderPart
from promptmill.jobs.store.records import Record


class Shape(OrderPart):
    """Divides answers that have a schema. Each record that it makes has the key of the record that it divides."""

    def output_schema(self, schema: JsonObject) -> JsonDict:
        """Return the schema of the answers in the output. Raises `PromptmillError` (`invalid_input`) if answers of
        `schema` cannot be divided."""
        raise NotImplementedError

    def division(self, schema: JsonObject) -> Callable[[Record], Iterable[Record]]:
        """Return a function that divides a record (an answer of this schema, or a failure) into at least one record of
        the output."""
        raise NotImplementedError

    def rows_in(self, store: JobDatabase) -> int:
        """Return the number of output rows that the records of a database are divided into. Blocks."""
        raise NotImplementedError

    def remarks(self, schema: JsonObject) -> Sequence[str]:
        """Return remarks for the user about the division of answers that have this schema."""
        del schema
        return ()


def shape_in(parts: Mapping[str, OrderPart]) -> dict[str, Shape]:
    """Return the shape among the parts of an order, by its name. Raises `PromptmillError` if there are several."""
    shapes = {name: each for name, each in parts.items() if isinstance(each, Shape)}
    if len(shapes) > 1:
        first, second, *_ = map(Named, shapes)
        raise input_error(first, " cannot be used with ", second, "; leave one of them out.")
    return shapes
