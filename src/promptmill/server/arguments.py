"""The arguments of the tools: their types, with the schemas and descriptions that clients get from `tools/list`.

Pydantic does not check the lists of prompts, images and turns, because it would check every item and quote all wrong
ones in its error. The functions below the types read them into conversations and stop at the first wrong item; long
or large ones are read in a thread: half a million items take a second, during which the event loop serves other calls.
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
    Sampling,
    conversation_from_messages,
    conversation_from_prompt,
    is_longer,
)
from promptmill.core.wording import shape

T = TypeVar("T")
_SHORT = 20_000  # characters, or values, of prompts that take a millisecond to read
_PART = {
    "type": "object",
    "description": '{"type": "text", "text": "…"} or {"type": "image_url", "image_url": {"url": "…"}}.',
    "additionalProperties": True,
}
_CONTENT = {
    "description": "The text; or a list of parts.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "object", "additionalProperties": True}],
}
_TURN = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": _CONTENT,
    },
    "required": ["role"],
    "additionalProperties": True,
}


def a_list(*, of: dict[str, Any], description: str, examples: list[Any]) -> WithJsonSchema:
    """Return the schema of a list, which pydantic only passes on."""
    return WithJsonSchema({"type": "array", "items": of, "description": description, "examples": examples})


Prompts = Annotated[
    Any,  # messages are accepted too, but strict function calling refuses a schema with `anyOf`
    a_list(
        of={"type": "string"},
        description="The prompts: a list, also for a single one. Each is answered separately. A chat message "
        "with `content` is accepted too.",
        examples=[["What is the capital of France?", "Translate to German: Good morning!"]],
    ),
]
SystemPrompt = Annotated[
    str,
    Field(
        description="System prompt for every prompt of this call. Leave it out to use the configured one.",
        examples=["Answer in one word."],
    ),
]
ModelName = Annotated[
    str | None,
    Field(
        description="The name of the server's model to use, from promptmill://models. Leave it out to use the "
        "default model.",
        examples=["default"],
    ),
]
MaxCost = Annotated[
    float | None,
    Field(
        ge=0,
        description="Spending limit of this call in US dollars; prompts beyond it fail with code "
        "`budget`. Left out: the call has no limit. Requires a known price and `max_tokens`.",
    ),
]
CallSampling = Annotated[
    dict[str, Any] | None,
    Field(
        description="Sampling parameters that override the configured ones in this call; leave it out to change none. "
        "Names: temperature, top_p, max_tokens, stop, seed and the like, and OpenAI's tools, tool_choice, logprobs; "
        "top_choices: 3 gives probabilities of `choices`. Rarely needed.",
        examples=[{"temperature": 0, "max_tokens": 256}],
    ),
]
Choices = Annotated[
    list[str] | None,
    Field(
        description="A short form of `schema`, instead of it: every answer is exactly one of these texts, such "
        'as ["positive", "negative"]. Leave it out for free text.',
    ),
]
AnswerSchema = Annotated[
    dict[str, Any] | None,
    Field(
        description="JSON Schema that every answer must satisfy; answers are then JSON texts. Leave it out for free "
        "text. Describe fields with `description`, and set `additionalProperties: false`.",
        examples=[
            {
                "type": "object",
                "properties": {"city": {"type": "string"}, "population": {"type": "integer"}},
                "required": ["city", "population"],
                "additionalProperties": False,
            }
        ],
    ),
]
Images = Annotated[
    Any,
    a_list(
        of={"type": "array", "items": {"type": "string"}},
        description="A list of images for each prompt, in the order of `prompt_ls` and of the same length; "
        "[] for a prompt without images. An image is a path on the server's machine (absolute is best), or a file:, "
        "http(s): or data: URL. PNG, JPEG, WebP, GIF, AVIF, BMP, TIFF or ICO.",
        examples=[[["/home/ada/chart.png"]], [["https://example.com/a.jpg", "b.webp"], []]],
    ),
]
ImageTag = Annotated[
    str | None,
    Field(
        description="The text that marks the place of an image, if the prompts contain such marks. A prompt's k-th tag "
        "is replaced by its k-th image, so it needs one tag per image. Left out: images follow the text.",
        examples=["<image>"],
    ),
]
Messages = Annotated[
    Any,
    a_list(
        of=_TURN,
        description="One conversation, oldest turn first; the last turn is answered. The first turn may be a system "
        "turn.",
        examples=[
            [
                {"role": "user", "content": "My name is Ada."},
                {"role": "assistant", "content": "Hello, Ada!"},
                {"role": "user", "content": "What is my name?"},
            ]
        ],
    ),
]
BackendConfigs = Annotated[
    dict[str, Any],
    Field(
        description="Settings by backend name, which override the configured ones key by key; {} changes none. Keys of "
        "`openai`: model_name, base_url, api_key_env (the variable that holds the key), concurrency, retries, rpm, "
        "tpm, timeout, …; of `hf`: model_name_or_path, device, batch_size, dtype, …; of `openvino`: "
        "model_name_or_path, threads, precision, …; of `vllm`: model_name_or_path, gpu_ids, gpu_memory_utilization and "
        "any engine argument.",
        examples=[
            {"openai": {"model_name": "Qwen/Qwen3-8B", "base_url": "http://localhost:8000/v1"}},
            {"hf": {"model_name_or_path": "smollm2-135m-instruct"}},
            {},
        ],
    ),
]
SamplingParams = Annotated[
    dict[str, Any],
    Field(
        description="Sampling parameters; {} keeps the configured ones, any other object replaces all of them. "
        f"Names: {', '.join(Sampling.model_fields)}.",
        examples=[{"temperature": 0, "max_tokens": 256}, {}],
    ),
]
ExtraParams = Annotated[
    dict[str, Any] | None,
    Field(
        description="Further parameters, passed unchanged to the engine or in the request body. Rarely needed; left "
        "out or {}: the configured ones apply.",
        examples=[{"chat_template_kwargs": {"enable_thinking": False}}],
    ),
]


class Sent(str):
    """A name that the client sent; its type distinguishes it from the same name as a default."""

    __slots__ = ()


DEFAULT_BACKEND = "vllm"
BackendName = Annotated[
    str,
    AfterValidator(lambda name: Sent(name) if name else DEFAULT_BACKEND),
    Field(
        description="The backend for all later calls. Left out: the configured one stays, unless "
        "`backend_configs` names another or an earlier call chose another; then it is `vllm`. "
        "Better name it. `openai`: an OpenAI-compatible endpoint; `openvino`: a model on the CPU of the server's "
        "machine; `hf`: a transformers model there; `vllm`: a vLLM engine on the server's GPUs.",
        examples=["openai"],
        json_schema_extra={"enum": sorted(BACKENDS)},
    ),
]
JobId = Annotated[
    str,
    Field(
        description="The `job_id` from the result of bulk_generate, or of a call that reached its time limit.",
        examples=["prompts-1f0c9a7b2e"],
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
    """Return one conversation for each prompt and its images. Raises `PromptmillError` for an invalid list."""

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
    """Return the turns as a conversation. Raises `PromptmillError`."""
    return await _read(messages, lambda: conversation_from_messages(messages, "messages"))


async def _read(items: Sequence[Any], read: Callable[[], T]) -> T:
    return await asyncio.to_thread(read) if is_longer(items, _SHORT) else read()


def _sources(item: object, where: str) -> list[str]:
    """Return the images of one prompt; a single image becomes a list of one."""
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
