"""The arguments of the tools: their types, with the schemas and descriptions in `tools/list`.

Pydantic does not check the lists of prompts, images and turns, because it would check every item and quote all invalid
items in its error. The functions below convert lists to conversations and stop at the first invalid item. Long or large
lists are converted in a thread: half a million items take a second, and the event loop serves other calls meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, WithJsonSchema

from promptmill.config.backends import BACKENDS
from promptmill.core.bounds import MOST_VALUES
from promptmill.core.errors import PromptmillError, input_error
from promptmill.core.request import (
    Conversation,
    ImagePosition,
    conversation_from_messages,
    conversation_from_prompt,
    is_longer,
)
from promptmill.core.wording import shape

T = TypeVar("T")
_SHORT = 20_000  # characters, or values, of prompts that the event loop converts (within a millisecond)
_TURN = {
    "type": "object",
    "properties": {"role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]}},
    "required": ["role"],
}


def a_list(*, of: dict[str, Any], description: str) -> WithJsonSchema:
    """Return the schema of a list that pydantic passes on unchecked."""
    return WithJsonSchema({"type": "array", "items": of, "description": description})


Prompts = Annotated[
    Any,  # also messages, but strict function calling refuses a schema with `anyOf`
    a_list(of={"type": "string"}, description="The prompts; each gets one answer."),
]
SystemPrompt = Annotated[str, Field(description="System prompt of every prompt.")]
ModelName = Annotated[str | None, Field(description="A name from promptmill://models, or any model of the endpoint.")]
MaxCost = Annotated[
    float | None,
    Field(ge=0, description="Most US dollars; needs a known price and `max_tokens`."),
]
CallSampling = Annotated[
    dict[str, Any] | None,
    Field(
        description="Rarely needed: temperature, max_tokens, stop, seed, tools, logprobs, …; top_choices: 3 gives "
        "probabilities of `choices`."
    ),
]
Choices = Annotated[list[str] | None, Field(description="Every answer is exactly one of these.")]
AnswerSchema = Annotated[
    dict[str, Any] | None, Field(description="JSON Schema of every answer, which is then a JSON text.")
]
Images = Annotated[
    Any,
    a_list(
        of={"type": "array", "items": {"type": "string"}},
        description="For each prompt, in their order, the list of its images, [] for none: paths on the server's "
        "machine, http(s): or data: URLs.",
    ),
]
ImageTag = Annotated[
    str | None,
    Field(description="A placeholder in the prompts, <image>: each becomes the next image. Without it they follow."),
]
Messages = Annotated[
    Any,
    a_list(of=_TURN, description="All turns, oldest first; the last is answered. `content`: a text or OpenAI's parts."),
]
BackendConfigs = Annotated[
    dict[str, Any],
    Field(
        description="Settings by backend, over the configured ones; {} changes none. `openai`: model_name, base_url, "
        "api_key_env (the variable with the key), concurrency, rpm, tpm, …; `hf`, `openvino`, `vllm`: "
        "model_name_or_path and the engine's arguments."
    ),
]
SamplingParams = Annotated[
    dict[str, Any],
    Field(
        description="{} keeps the configured parameters, any other object replaces all: temperature, top_p, seed, "
        "max_tokens, stop, n, choices, response_format, reasoning_effort, …; see skill://promptmill/SKILL.md."
    ),
]
ExtraParams = Annotated[
    dict[str, Any] | None, Field(description="Passed unchanged to the engine or into the request's body.")
]


class Sent(str):
    """A name from the client. The type distinguishes it from the same name as a default."""

    __slots__ = ()


DEFAULT_BACKEND = "vllm"
BackendName = Annotated[
    str,
    AfterValidator(lambda name: Sent(name) if name else DEFAULT_BACKEND),
    Field(
        description="Better name it. Default: the configured one, or `vllm` if `backend_configs` or an earlier call "
        "chose another. `openai`: an endpoint; the others run on the server's machine.",
        json_schema_extra={"enum": sorted(BACKENDS)},
    ),
]


async def conversations(prompts: Sequence[Any]) -> list[Conversation]:
    """Return one conversation for each prompt. Raises `PromptmillError`."""
    return await _read(
        prompts, lambda: [conversation_from_prompt(item, f"prompt_ls[{index}]") for index, item in enumerate(prompts)]
    )


async def conversations_with_images(
    prompts: Sequence[Any], images: Sequence[Any], tag: str | None, position: ImagePosition
) -> list[Conversation | PromptmillError]:
    """Return a conversation for each prompt with its images. Raises `PromptmillError` for an invalid list."""

    def read() -> list[Conversation | PromptmillError]:
        sources: list[list[str]] = []
        left = MOST_VALUES
        for index, item in enumerate(images):
            sources.append(_sources(item, f"multimodal_path[{index}]"))
            left -= len(sources[-1])
            if left < 0:
                raise input_error(f"multimodal_path holds more than {MOST_VALUES:,} images; send fewer at once.")
        if len(sources) != len(prompts):
            raise input_error(
                f"multimodal_path has {len(sources)} entries but prompt_ls has {len(prompts)}; "
                "send one list of images per prompt, [] for none."
            )
        return [
            _with_images(conversation_from_prompt(item, f"prompt_ls[{index}]"), sources[index], tag, position)
            for index, item in enumerate(prompts)
        ]

    return await _read([prompts, images], read)


async def conversation(messages: Sequence[Any]) -> Conversation:
    """Convert the turns to a conversation. Raises `PromptmillError`."""
    return await _read(messages, lambda: conversation_from_messages(messages, "messages"))


async def _read(items: Sequence[Any], read: Callable[[], T]) -> T:
    return await asyncio.to_thread(read) if is_longer(items, _SHORT) else read()


def _sources(item: object, where: str) -> list[str]:
    """Return the images of one prompt. A single image becomes a list."""
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
