"""The types of the tools' arguments, as a client that knows nothing else reads them in `tools/list`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from promptmill.config.backends import BACKENDS
from promptmill.core.sampling import Sampling
from promptmill.server.prompt_lists import as_list_or_object

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


def _a_list(*, of: dict[str, Any], description: str, examples: list[Any]) -> WithJsonSchema:
    """Return the schema of a list, which `prompt_lists` reads; pydantic only passes it on."""
    return WithJsonSchema({"type": "array", "items": of, "description": description, "examples": examples})


Loose = BeforeValidator(as_list_or_object)


def null_is(default: object) -> BeforeValidator:
    """Return a validator that reads `null`, which some models send for what they leave out, as the default."""
    return BeforeValidator(lambda value: default if value is None else value)


Prompts = Annotated[
    Any,  # messages are taken too, but strict function calling takes no tool whose schema has a choice
    _a_list(
        of={"type": "string"},
        description="The prompts: a list, also for a single one. Each is answered on its own, without the others. A "
        "chat message with `content` is accepted too.",
        examples=[["What is the capital of France?", "Translate to German: Good morning!"]],
    ),
]
SystemPrompt = Annotated[
    str,
    null_is(""),
    Field(
        description="Instruction above every prompt of this call. Leave it out for the configured one.",
        examples=["Answer in one word."],
    ),
]
ModelName = Annotated[
    str | None,
    Field(
        description="Which of the server's models answers, by its name in promptmill://models. Leave it out for the "
        "usual one.",
        examples=["default"],
    ),
]
MaxCost = Annotated[
    float | None,
    Field(
        ge=0,
        description="Most US dollars that this call may cost; prompts that there is no "
        "room for fail with code `budget`. Left out: no limit of its own. Needs a known price and `max_tokens`.",
    ),
]
CallSampling = Annotated[
    dict[str, Any] | None,
    Loose,
    Field(
        description="Sampling parameters of this call, which override the configured ones; leave it out for those. "
        "Names: temperature, top_p, max_tokens, stop, seed and the like, and OpenAI's tools, tool_choice, logprobs. "
        "Seldom needed.",
        examples=[{"temperature": 0, "max_tokens": 256}],
    ),
]
AnswerSchema = Annotated[
    dict[str, Any] | None,
    Loose,
    Field(
        description="JSON Schema that every answer must satisfy; an answer is then a JSON text. Leave it out for free "
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
    _a_list(
        of={"type": "array", "items": {"type": "string"}},
        description="The images: for each prompt a list, in the order of `prompt_ls` and as many as there are prompts; "
        "[] for a prompt without an image. An image is a path on the server's machine (best absolute), or a file:, "
        "http(s): or data: URL. PNG, JPEG, WebP, GIF, BMP or TIFF.",
        examples=[[["/home/ada/chart.png"]], [["https://example.com/a.jpg", "b.webp"], []]],
    ),
]
ImageTag = Annotated[
    str | None,
    Field(
        description="Only when the prompts themselves say where images go: the text that marks a place. A prompt's "
        "k-th tag is replaced by its k-th image, so it needs as many tags as images. Left out, images follow the text.",
        examples=["<image>"],
    ),
]
Messages = Annotated[
    Any,
    _a_list(
        of=_TURN,
        description="One conversation, oldest turn first; the last turn is the one to answer. A system turn may come "
        "first.",
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
    Loose,
    Field(
        description="Settings by backend name, laid over the configured ones key by key; {} changes none. Keys of "
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
    Loose,
    Field(
        description="Sampling parameters; {} keeps the configured ones, anything else replaces all of them. "
        f"Names: {', '.join(Sampling.model_fields)}.",
        examples=[{"temperature": 0, "max_tokens": 256}, {}],
    ),
]
ExtraParams = Annotated[
    dict[str, Any] | None,
    Loose,
    Field(
        description="More parameters, which go to the engine or into the request body as they are. Seldom needed; left "
        "out or {}, the configured ones count.",
        examples=[{"chat_template_kwargs": {"enable_thinking": False}}],
    ),
]


class Sent(str):
    """A word that the client sent, told from the same word as a default."""

    __slots__ = ()


DEFAULT_BACKEND = "vllm"
BackendName = Annotated[
    str,
    null_is(""),
    AfterValidator(lambda name: Sent(name) if name else DEFAULT_BACKEND),
    Field(
        description="Which backend answers from now on. Left out, the configured one stays, unless "
        "`backend_configs` names another or a call chose another before; then it is `vllm`, as in UltraRAG. "
        "Better give it. `openai`: any OpenAI-compatible endpoint; `openvino`: a model on the CPU of the server's "
        "machine; `hf`: a transformers model there; `vllm`: a vLLM engine on the server's GPUs.",
        examples=["openai"],
        json_schema_extra={"enum": sorted(BACKENDS)},
    ),
]
JobId = Annotated[
    str,
    Field(
        description="The `job_id` that bulk_generate returned, or a call that was out of time.",
        examples=["prompts-1f0c9a7b2e"],
    ),
]
