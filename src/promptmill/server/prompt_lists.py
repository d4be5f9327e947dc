"""Lists of prompts, images and turns as clients send them → conversations, stopping at the first wrong item.

Long lists are read in a thread: half a million items take a second, during which the event loop serves other calls.
Pydantic does not check these lists, because it would check every item and quote all wrong ones in its error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson

from promptmill.core.conversation import (
    Conversation,
    ImagePosition,
    conversation_from_messages,
    conversation_from_prompt,
)
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.wording import shape

T = TypeVar("T")
_FEW = 500  # half a millisecond
_MOST_VALUES = 300_000  # the limit for a request over HTTP, which counts only values outside of texts


def as_list_or_object(value: object) -> object:
    """Read a list or object that arrives as a JSON string, as some language models send it.

    Raises `ValueError` for one that may hold more than 300,000 values: 60 MB of them would take 2 GB and 15 seconds.
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in {"[", "{"}:
        return value
    if len(value) > _MOST_VALUES and sum(map(value.count, "[{,")) > _MOST_VALUES:
        raise ValueError(f"is a text that may hold more than {_MOST_VALUES:,} values; send a list or an object.")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def list_of(value: object, name: str) -> list[Any]:
    """Return the argument as a list; a single text or object becomes a list of one. Raises `PromptmillError`."""
    try:
        value = as_list_or_object(value)
    except ValueError as error:
        raise input_error(f"{name} {error}") from None
    if isinstance(value, str | dict):
        return [value]
    if not isinstance(value, list):
        raise input_error(f"{name} is {shape(value)}; send a list.")
    return value


def turns_of(messages: object) -> list[Any]:
    """Return the argument as a list of turns; a single object becomes a list of one. Raises `PromptmillError`."""
    turns = list_of(messages, "messages")
    if isinstance(messages, str) and turns == [messages]:
        raise input_error('messages is a text; send a list of turns: [{"role": "user", "content": "…"}].')
    return turns


async def conversations(prompts: Sequence[Any]) -> list[Conversation]:
    """Return one conversation for each prompt. Raises `PromptmillError`."""
    return await _read(
        prompts, lambda: [conversation_from_prompt(item, f"prompt_ls[{index}]") for index, item in enumerate(prompts)]
    )


async def conversations_with_images(
    prompts: Sequence[Any], images: Sequence[Any], tag: str | None, position: ImagePosition
) -> list[Conversation | PromptmillError]:
    """Return one conversation for each prompt and its images. Raises `PromptmillError` for an invalid list."""

    def read() -> list[Conversation | PromptmillError]:
        sources: list[list[str]] = []
        left = _MOST_VALUES
        for index, item in enumerate(images):
            sources.append(_sources(item, f"multimodal_path[{index}]"))
            left -= len(sources[-1])
            if left < 0:
                raise input_error(f"multimodal_path holds more than {_MOST_VALUES:,} images; send fewer at once.")
        if len(sources) != len(prompts):
            raise input_error(
                f"multimodal_path has {len(sources)} entries but prompt_ls has {len(prompts)}; "
                "send one list of images per prompt, [] for none."
            )
        return [
            _with_images(conversation_from_prompt(item, f"prompt_ls[{index}]"), sources[index], tag, position)
            for index, item in enumerate(prompts)
        ]

    return await _read(max(prompts, images, key=len), read)


async def conversation(messages: Sequence[Any]) -> Conversation:
    """Return the turns as a conversation. Raises `PromptmillError`."""
    return await _read(messages, lambda: conversation_from_messages(messages, "messages"))


async def _read(items: Sequence[Any], read: Callable[[], T]) -> T:
    return read() if len(items) <= _FEW else await asyncio.to_thread(read)


def _sources(item: object, where: str) -> list[str]:
    """Return the images of one prompt; a single image becomes a list of one."""
    try:
        item = as_list_or_object(item)
    except ValueError as error:
        raise input_error(f"{where} {error}") from None
    if isinstance(item, str):
        return [item]
    if isinstance(item, list) and all(isinstance(source, str) for source in item):
        return item
    raise input_error(f"{where} is {shape(item)}; send a list of texts: the images of one prompt.")


def _with_images(
    conversation: Conversation, sources: Sequence[str], tag: str | None, position: ImagePosition
) -> Conversation | PromptmillError:
    try:
        return conversation.with_images(sources, tag, position)
    except PromptmillError as error:
        return error
