"""The parts of an order. If the order's options select a feature, a part has the options of that feature for the job.

    options of a command ─▶ parts_of ─▶ {"lake": Lake(…), "long": LongAgain(…)} ─▶ JSON: {"lake": {…}, "long": {…}}

A part may name the way or the backend that answers the rows. A part that decides which rows are sent is a plan (see
`plan.Plan`). An order has one part for each selected feature; a job keeps the plan (with its decisions) and the shape.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import BeforeValidator, PlainSerializer

from promptmill.backends.protocol import Backend
from promptmill.core.errors import Named, Words, input_error
from promptmill.core.feature import order_parts, part
from promptmill.jobs.store.description import JobPrompts, Stored
from promptmill.jobs.store.rounds import LIVE

if TYPE_CHECKING:  # imported on use: it takes a twentieth of a second
    from promptmill.config.model_config import ModelConfig

Create: TypeAlias = Callable[["ModelConfig"], Awaitable[Backend]]


class OrderPart(Stored):
    """The options of a feature in an order. They state how, or where, the rows are answered."""

    way: ClassVar[str] = LIVE
    """The way of the first round that sends rows. Rows that it does not answer are sent live."""
    rules: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The rules that the part adds to `rounds.RULES`, by name. Each of them selects the rows of a round."""

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> OrderPart | None:
        """Return the part that the options of `bulk` select; None if they select none. `models`: the order's models.

        Raises `PromptmillError` (`invalid_input`).
        """
        del options, models
        return cls()

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`) if the part does not support the settings or prompts."""

    @property
    def create(self) -> Create | None:
        """The function that makes the job's backend; None if the backends of promptmill answer the job's rows."""
        return None

    @property
    def notes(self) -> Sequence[str]:
        """Remarks for the user."""
        return ()

    def hints(self, inputs: Sequence[Path]) -> Sequence[Words]:
        """Return hints for the user about files of rows. `inputs`: the paths as the user named them."""
        del inputs
        return ()

    def repeated(self, begun: OrderPart) -> OrderPart:
        """Return the options for a command that repeats an unfinished job. `begun`: the options of that job."""
        del begun
        return self


class UnknownPart(OrderPart):
    """The part of a missing feature. Its job can be read, but not run."""

    name: str
    values: Mapping[str, Any]

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`)."""
        del config, question
        raise input_error("The job was begun with ", Named(self.name), ", whose feature is not installed.")


def parts_of(options: Mapping[str, Any], models: Sequence[str]) -> dict[str, OrderPart]:
    """Return the parts that the options of `bulk` select, by name. Raises `PromptmillError` (`invalid_input`)."""
    parts = dict[str, OrderPart]()
    for entries in order_parts():
        for entry in entries:
            if entry.may_be_asked(options) and (found := part(entry.part).of(options, models)) is not None:
                parts[entry.name] = found
                break
    return parts


def _read(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    kinds = {entry.name: entry.part for entries in order_parts() for entry in entries}
    return {name: _read_part(name, each, kinds.get(name)) for name, each in value.items()}


def _read_part(name: str, value: Any, where: str | None) -> OrderPart:
    if isinstance(value, OrderPart):
        return value
    if where is None:
        return UnknownPart(name=name, values=value)
    kind: type[OrderPart] = part(where)
    return kind.model_validate(value)


def _written(parts: Mapping[str, OrderPart]) -> dict[str, object]:
    return {
        name: each.values if isinstance(each, UnknownPart) else each.model_dump(mode="json")
        for name, each in parts.items()
    }


AnyParts: TypeAlias = Annotated[
    Mapping[str, OrderPart], BeforeValidator(_read), PlainSerializer(_written, when_used="json")
]
"""Parts of features, by name."""
