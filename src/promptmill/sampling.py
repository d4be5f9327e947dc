"""`Sampler.sample`: stands in for the `ctx.sample` that FastMCP 4 removed, on a model of yours instead of the client's.

    sampler = Sampler.load()                       # what parameter.yaml says
    server = FastMCP("mine", lifespan=sampler.lifespan)

    @server.tool
    async def summarise(text: str) -> str:
        result = await sampler.sample(f"Summarise: {text}", max_tokens=200)
        return result.text

Arguments and result are those of FastMCP 3's `Context.sample`, without `tools`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

from pydantic import TypeAdapter, ValidationError

from promptmill.answers.schema import asking_for
from promptmill.backends.protocol import Call
from promptmill.config.loading import Configuration
from promptmill.core.conversation import conversation_from_messages
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.outcome import Failure
from promptmill.service.service import Service

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class SamplingResult(Generic[ResultT]):
    """An answer. `text` is as the model gave it, `result` of the type that was asked for, `history` all turns."""

    text: str
    result: ResultT
    history: list[dict[str, Any]]


class Sampler:
    """Answers from a model that stays loaded: `async with`, the `lifespan` of a server, or `aclose` in the end."""

    def __init__(self, configuration: Configuration) -> None:
        """Load nothing yet; the first `sample` does."""
        self._service = Service(configuration)

    @classmethod
    def load(cls, path: Path | str | None = None, **values: Any) -> Sampler:
        """Return a sampler for the configuration file that `promptmill` would use, or the one at `path`.

        `values` are keys that go over the file's, their dots written as `__`:
        `backend_configs__openai__model_name="m"`. Raises `PromptmillError` (`invalid_config`).
        """
        over = {tuple(name.split("__")): value for name, value in values.items()}
        return cls(Configuration.load(None if path is None else Path(path), values=lambda _: over))

    async def __aenter__(self) -> Sampler:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End running calls and free the model."""
        await self._service.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(self, server: Any = None) -> AsyncIterator[dict[str, Sampler]]:
        """Close the sampler with the server: `FastMCP(name, lifespan=sampler.lifespan)`."""
        del server
        try:
            yield {"sampler": self}
        finally:
            await self.aclose()

    @overload
    async def sample(
        self,
        messages: str | Sequence[Any],
        *,
        system_prompt: str | None = ...,
        temperature: float | None = ...,
        max_tokens: int | None = ...,
        model_preferences: Any = ...,
        tools: None = ...,
        result_type: None = ...,
    ) -> SamplingResult[str]: ...

    @overload
    async def sample(
        self,
        messages: str | Sequence[Any],
        *,
        system_prompt: str | None = ...,
        temperature: float | None = ...,
        max_tokens: int | None = ...,
        model_preferences: Any = ...,
        tools: None = ...,
        result_type: type[ResultT],
    ) -> SamplingResult[ResultT]: ...

    async def sample(
        self,
        messages: str | Sequence[Any],
        *,
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        model_preferences: Any = None,
        tools: Sequence[Any] | None = None,
        result_type: type[Any] | None = None,
    ) -> SamplingResult[Any]:
        """Return the answer to a text, or to turns (texts, `SamplingMessage`s, or dicts of a role and its content).

        `model_preferences` (a name, names, or MCP's `ModelPreferences`) chooses among the configuration's `models`;
        what it does not have is passed over. `result_type` is what the answer becomes: a pydantic class or any type.
        Raises `PromptmillError`: the model's failure, or `unsupported` for `tools`.
        """
        if tools:
            raise PromptmillError(
                Code.UNSUPPORTED, "`tools` cannot be given to `sample`.", "Let an agent's framework run the tools."
            )
        turns = [_turn(message) for message in ([messages] if isinstance(messages, str) else messages)]
        adapter, wrapped = None, False
        changes = {"temperature": temperature, "max_tokens": max_tokens}
        changes = {name: value for name, value in changes.items() if value is not None}
        plan = self._service.plan_of(self._preferred(model_preferences))
        if result_type is not None and result_type is not str:
            adapter = TypeAdapter(result_type)
            schema = adapter.json_schema()
            wrapped = schema.get("type") != "object"
            if wrapped:  # endpoints take schemas of objects alone
                inner = {name: value for name, value in schema.items() if name != "$defs"}
                more = {"$defs": schema["$defs"]} if "$defs" in schema else {}
                schema = {"type": "object", "properties": {"value": inner}, "required": ["value"], **more}
            plan = plan.with_sampling({**changes, "response_format": asking_for(schema)})
        else:
            plan = plan.with_sampling(changes)
        conversation = conversation_from_messages(turns, "messages")
        (outcome,) = await self._service.generate(
            [conversation], Call(total=1), system_prompt=system_prompt or "", plan=plan
        )
        if isinstance(outcome, Failure):
            raise outcome.error
        history = [*turns, {"role": "assistant", "content": outcome.text}]
        if adapter is None:
            return SamplingResult(outcome.text, outcome.text, history)
        return SamplingResult(outcome.text, _read(adapter, outcome.text, wrapped=wrapped), history)

    def _preferred(self, preferences: Any) -> str | None:
        """Return the first of the preferred models that there is; MCP's hints are no more than that."""
        if preferences is None:
            return None
        hints = getattr(preferences, "hints", preferences) or ()
        names = [hints] if isinstance(hints, str) else [getattr(hint, "name", hint) for hint in hints]
        return next((name for name in names if name in self._service.models), None)


def _turn(message: Any) -> dict[str, Any]:
    if isinstance(message, str):
        return {"role": "user", "content": message}
    if isinstance(message, Mapping):
        return dict(message)
    return cast("dict[str, Any]", message.model_dump(mode="json", by_alias=True, exclude_none=True))


def _read(adapter: TypeAdapter[Any], text: str, *, wrapped: bool) -> Any:
    try:
        if not wrapped:
            return adapter.validate_json(text)
        found: Any = TypeAdapter(dict[str, Any]).validate_json(text)
        return adapter.validate_python(found["value"])
    except (ValidationError, KeyError):  # by a validator of the class, which its schema cannot tell
        raise PromptmillError(Code.INVALID_ANSWER, "The answer is not what `result_type` takes.") from None
