"""The typed settings of `parameter.yaml`: each key with its default, bounds and meaning."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from promptmill.config import backends
from promptmill.core.errors import looks_like_key
from promptmill.core.request import FileKind, Sampling


def _gpu_ids(value: object) -> object:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return value or None


def _device(name: str) -> str:
    if not re.fullmatch(_DEVICE, name):
        raise ValueError("is not one of `auto`, `cpu`, `cuda`, `cuda:0`, `mps`")
    return name


def _one_or_many(value: object) -> object:
    return ([value] if value.strip() else []) if isinstance(value, str) else value


def _words(command: object) -> object:
    """Split a command that is given as text. Quotes work as in a shell; variables, pipes and wildcards do not."""
    if not isinstance(command, str):
        return command
    lexer = shlex.shlex(command, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if sys.platform == "win32":
        lexer.escape, lexer.quotes = "", '"'  # a backslash separates folders, and only double quotes group words
    try:
        words = [*lexer]
    except ValueError:
        raise ValueError("has a quote that is not closed") from None
    if any(_OF_A_SHELL.search(word) for word in words):
        raise ValueError("is run without a shell; for pipes and variables, write [sh, -c, '…']")
    return words


def _command(words: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if words is None:
        return None
    if not words or not words[0].strip():
        raise ValueError("is empty; write a program and its arguments")
    if any("\0" in word for word in words):
        raise ValueError("contains a NUL character")
    return words


@dataclass(frozen=True, slots=True)
class Mark:
    """A property of a setting, written as `Annotated[type, BY_CALL, …]`."""

    meaning: str


BY_CALL: Final = Mark("A call may set it. A setting without this mark is the operator's alone.")
BY_TRUSTED: Final = Mark("A call of a trusted client may set it.")
OF_ENDPOINT: Final = Mark("It belongs to one endpoint, so another endpoint does not inherit it.")
OF_ACCOUNT: Final = Mark("It decides with whose account an endpoint is used.")
KEY_SOURCE: Final = Mark("It is a source of the key. A source that is set replaces the others.")
OF_EFFORT: Final = Mark("It affects how an answer is obtained, but not the answer.")

USUAL_KEYS = ("LLM_API_KEY", "OPENAI_API_KEY")
"""The environment variables that are searched, in this order, for an API key if no setting names one."""
_GpuIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...] | None, BeforeValidator(_gpu_ids)]
_GPU_IDS = 'GPUs the engine may see: `"2,3"`, `2` or `[2, 3]`; empty: all.'
_REPLICAS = (
    "Engines that share the work, each in its own process with an equal part of `gpu_ids`. If the model fits into one "
    "part, this gives more throughput than one engine over all GPUs."
)
_MODEL = "A folder, a model hub name, or `smollm2-135m-instruct`, which is included in the package."
_OF_A_SHELL = re.compile(r"^(?:\||\|\||&&|&|;|[0-9]?>{1,2}|<)$|\$\(|`")
_DEVICE = r"(auto|cpu|mps|cuda(:\d+)?)"
_REMOTE_CODE = "Run Python code that comes with the model. Only the operator may set it, for the operator's model."


class Block(BaseModel):
    """A group of keys; an unknown key is an error."""

    # Without `defer_build` and defaults made by `model_construct`, the schema of each block would be built twice.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        """Read `key:` without a value as the default."""
        if not isinstance(data, dict):
            return data
        with_default = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if value is not None or key not in with_default}

    @classmethod
    def marked(cls, *marks: Mark) -> frozenset[str]:
        """Return the names of the settings with one of `marks`."""
        return frozenset(
            name for name, field in cls.model_fields.items() if any(one in field.metadata for one in marks)
        )

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_a_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` and `false` as numbers. Python would read them as 1 and 0."""
        annotation = str(cls.model_fields[info.field_name or ""].annotation)
        given = value if isinstance(value, list | tuple) else [value]
        numeric = ("int" in annotation or "float" in annotation) and "bool" not in annotation
        if numeric and any(isinstance(one, bool) for one in given):
            raise ValueError("should be a number, not true or false")
        return value


class _EndpointAddress(Block):
    """The address and the key of an endpoint."""

    provider: Annotated[str | None, BY_CALL, OF_ENDPOINT] = Field(
        None,
        description="A known provider or server, see `promptmill models --providers`; its address is the default of "
        "`base_url`.",
    )
    dialect: Annotated[str | None, BY_CALL, OF_ENDPOINT] = Field(
        None,
        description="The API to speak: `openai` (chat completions), `responses`, `anthropic` (Messages), `gemini` "
        "(generateContent), or one that decides, such as `decisions`, `systemone` or `gemini-decisions`; "
        "null: the provider's own.",
    )
    model_name: Annotated[str | None, BY_CALL] = Field(
        None, description="The model's name at the endpoint; null: the endpoint's only model."
    )
    base_url: Annotated[list[str], BeforeValidator(_one_or_many), BY_CALL, OF_ENDPOINT] = Field(
        [], description="Host, `…/v1` or the whole `…/chat/completions`; or a list of addresses that share the work."
    )
    api_key: Annotated[SecretStr | list[SecretStr] | None, BY_CALL, OF_ENDPOINT, OF_ACCOUNT, KEY_SOURCE, OF_EFFORT] = (
        Field(None, description="The key itself, or a list of keys that share the work; `api_key_env` is safer.")
    )
    api_key_env: Annotated[str | None, BY_CALL, OF_ENDPOINT, KEY_SOURCE, OF_EFFORT] = Field(
        None, description="The environment variable that holds the key."
    )
    api_key_command: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(_words),
        AfterValidator(_command),
        *(OF_ENDPOINT, OF_ACCOUNT, KEY_SOURCE, OF_EFFORT),
    ] = Field(
        None,
        description="A program, with its arguments, that prints the key; it runs again when the key expires. Only "
        "the operator may set it.",
    )
    headers: Annotated[dict[str, SecretStr], BY_CALL, OF_ENDPOINT, OF_ACCOUNT] = Field(
        {}, description="Additional headers for each request."
    )
    trust_env: Annotated[bool, BY_CALL, OF_EFFORT] = Field(
        True, description="Use the proxies of the environment variables, except for this machine."
    )

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name and looks_like_key(name):
            raise ValueError(
                "should be the NAME of an environment variable without `$`, such as OPENAI_API_KEY, not the key itself"
            )
        return name

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.api_key_command and (other := "api_key" if self.api_key else "api_key_env" if self.api_key_env else ""):
            raise ValueError(f"has `api_key_command` and `{other}`; leave one of them out")
        return self


class _EndpointLimits(Block):
    """The limits of an endpoint: requests and tokens at one time and per minute."""

    concurrency: Annotated[int, BY_CALL, OF_EFFORT] = Field(
        64,
        ge=1,
        le=65_536,
        description="Most requests in flight, of all calls together. If unset, a local server's limit is raised for "
        "as long as that increases throughput.",
    )
    adaptive: Annotated[bool, BY_CALL, OF_EFFORT] = Field(
        True, description="Find the number of requests in flight that the endpoint accepts."
    )
    rpm: Annotated[float | None, BY_CALL, OF_EFFORT] = Field(None, gt=0, description="Most requests a minute.")
    tpm: Annotated[float | None, BY_CALL, OF_EFFORT] = Field(
        None, gt=0, description="Most tokens a minute, prompt and answer."
    )
    max_connections: Annotated[int | None, BY_CALL, OF_EFFORT] = Field(
        None, ge=1, description="Most open connections; default: one per request in flight."
    )


class _EndpointPatience(Block):
    """Timeouts and retries of an endpoint."""

    retries: Annotated[int, BY_CALL, OF_EFFORT] = Field(
        5,
        ge=1,
        le=100,
        description="Most attempts per item; only failures of the item itself count. After lost connections and 503, "
        "twice as many.",
    )
    base_delay: Annotated[float, BY_CALL, OF_EFFORT] = Field(
        1.0, ge=0, description="First wait before a retry, in seconds; doubles each time."
    )
    max_delay: Annotated[float, BY_CALL, OF_EFFORT] = Field(
        30.0, ge=0, description="Longest wait before a retry, in seconds."
    )
    timeout: Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], BY_CALL, OF_EFFORT] = Field(
        (10, 600), description="Seconds to connect, and the longest silence of the endpoint in seconds."
    )
    item_timeout: Annotated[float | None, BY_CALL, OF_EFFORT] = Field(
        None, gt=0, description="Most seconds for one item, including retries."
    )
    patience: Annotated[float, BY_CALL, OF_EFFORT] = Field(
        120, gt=0, description="Seconds without an answer after which an endpoint is no longer used."
    )
    hedge: Annotated[bool, BY_CALL] = Field(
        False,
        description="Send a request again if it takes far longer than others, at most one in twenty; the first "
        "answer is used.",
    )

    @field_validator("timeout", mode="before")
    @classmethod
    def _seconds(cls, timeout: Any) -> Any:
        if isinstance(timeout, str):
            raise ValueError("should be a number of seconds, such as 300, or two: [to connect, the longest silence]")
        return timeout

    @model_validator(mode="before")
    @classmethod
    def _timeout_pair(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("timeout"), int | float):
            return {**data, "timeout": (min(10, data["timeout"]), data["timeout"])}
        return data


class OpenAISettings(_EndpointPatience, _EndpointLimits, _EndpointAddress):
    """Any OpenAI-compatible endpoint, Anthropic and Gemini."""

    stream: Annotated[bool, BY_CALL, OF_EFFORT] = Field(
        False, description="Receive answers in pieces, so that `timeout` detects an answer that hangs."
    )
    dedupe: Annotated[bool, BY_CALL, OF_EFFORT] = Field(
        False, description="Send identical requests of a call only once, if their temperature is 0."
    )
    num_workers: Annotated[int | None, BY_CALL, OF_EFFORT] = Field(
        None,
        ge=1,
        le=256,
        description="Worker processes for large calls; default: one per 256 images in flight, up to 8 or the cores.",
    )
    worker_concurrency: Annotated[int | None, BY_CALL, OF_EFFORT] = Field(
        None, ge=1, description="Requests in flight per worker; default: `concurrency` divided among the workers."
    )
    bulk_threshold: Annotated[int, BY_CALL, OF_EFFORT] = Field(
        20_000, ge=1, description="A call with at least this many prompts may use worker processes."
    )
    enable_thinking: Annotated[bool | None, BY_CALL] = Field(
        None, description="As in `sampling_params`, where a value takes precedence."
    )
    files: Annotated[list[FileKind], BY_CALL] = Field(
        [], description="Kinds of files that an endpoint unknown to promptmill accepts unchanged: `pdf`, `audio`."
    )


class HFSettings(Block):
    """A Hugging Face transformers model on this machine."""

    model_name_or_path: Annotated[str | None, BY_CALL] = Field(None, description=_MODEL)
    gpu_ids: Annotated[_GpuIds, BY_CALL] = Field(None, description=_GPU_IDS)
    replicas: Annotated[int, BY_CALL, OF_EFFORT] = Field(1, ge=1, le=64, description=_REPLICAS)
    trust_remote_code: Annotated[bool, BY_CALL] = Field(False, description=_REMOTE_CODE)
    batch_size: Annotated[int | None, BY_CALL, OF_EFFORT] = Field(
        None,
        ge=1,
        le=4096,
        description="Limit of prompts computed together; default: by model size, 512 on a GPU; free memory lowers it.",
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], BY_CALL] = Field(
        "auto", description="Number format of the weights."
    )
    device: Annotated[str, AfterValidator(_device), BY_CALL] = Field(
        "auto", description="`auto`, `cpu`, `cuda`, `cuda:0`, `mps`."
    )
    gguf_file: Annotated[str | None, BY_CALL] = Field(None, description="Name of a GGUF file in the model's folder.")
    attn_implementation: Annotated[Literal["eager", "sdpa", "flash_attention_2"] | None, BY_CALL] = Field(
        None, description="The implementation of attention; null: transformers chooses."
    )

    @model_validator(mode="before")
    @classmethod
    def _transformers_names(cls, data: Any) -> Any:
        """Accept the names of transformers: `torch_dtype`, and `device_map` if it names one device."""
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        if isinstance(named := data.get("torch_dtype"), str):
            data.setdefault("dtype", named.removeprefix("torch."))
            del data["torch_dtype"]
        if isinstance(place := data.get("device_map"), str) and re.fullmatch(_DEVICE, place):
            data.setdefault("device", place)
            del data["device_map"]
        return data


class VLLMSettings(Block):
    """A vLLM engine on this machine. Every engine argument of vLLM is passed on."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_name_or_path: Annotated[str | None, BY_CALL] = Field(None, description=_MODEL)
    gpu_ids: Annotated[_GpuIds, BY_CALL] = Field(None, description=_GPU_IDS)
    replicas: Annotated[int, BY_CALL, OF_EFFORT] = Field(1, ge=1, le=64, description=_REPLICAS)
    gpu_memory_utilization: Annotated[float | None, BY_CALL] = Field(
        None, gt=0, le=1, description="Fraction of each GPU's memory to use."
    )
    dtype: Annotated[str, BY_CALL] = Field("auto", description="Number format of the weights.")
    lora_modules: Annotated[dict[str, str] | None, BY_TRUSTED] = Field(
        None, description="Folders of LoRA adapters by name. A call selects one with `extra_params: {lora: NAME}`."
    )
    trust_remote_code: Annotated[bool, BY_CALL] = Field(False, description=_REMOTE_CODE)


class OpenVINOSettings(Block):
    """A model on this machine's CPU with OpenVINO, without torch."""

    model_name_or_path: Annotated[str | None, BY_CALL] = Field(
        None,
        description="A folder in OpenVINO's format, a GGUF file (Llama and Qwen families), a model hub name, or "
        "`smollm2-135m-instruct`, which is included in the package.",
    )
    gguf_file: Annotated[str | None, BY_CALL] = Field(None, description="Name of a GGUF file in the model's folder.")
    threads: Annotated[int | None, BY_CALL, OF_EFFORT] = Field(
        None, ge=1, le=1024, description="Compute threads; default: one per core."
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float16"], BY_CALL] = Field(
        "auto", description="Number format of the computation; `auto`: the fastest on this processor."
    )
    cache_gb: Annotated[int | None, BY_CALL, OF_EFFORT] = Field(
        None, ge=1, description="GiB for the cache of running prompts (KV cache); default: a quarter of free memory."
    )


class ApiToken(Block):
    """A further access token of a server over HTTP."""

    token: SecretStr = Field(description="The secret, best as `${VARIABLE}`.")
    models: list[str] | None = Field(None, description="Models that a request with this token may name; null: all.")


class ClientLimits(Block):
    """Limits for what a client may choose in its calls. They do not apply to a trusted client."""

    max_tokens: int | None = Field(None, ge=1, description="Longest answer of a call, in tokens.")
    models: list[str] | None = Field(None, description="Models that a call may choose; null: any.")
    tokens: dict[str, ApiToken] = Field(
        {},
        description="Further access tokens of a server over HTTP, each under a name. Each token has its own files, "
        "batches and models, and opens only `/v1`.",
    )


_IN_OUT = ("input", "output", "batch")


class PriceSettings(Block):
    """Prices per million tokens. `IN/OUT` is short for the prices of prompts and answers; `IN/OUT/BATCH` also sets
    `batch`."""

    input: float = Field(ge=0, description="For prompts.")
    output: float = Field(ge=0, description="For answers, including reasoning.")
    cached_input: float | None = Field(
        None, ge=0, description="For the part of a prompt in the endpoint's cache; default: as `input`."
    )
    batch: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The fraction of these prices that a request in a batch costs; default: the provider's.",
    )
    search: float | None = Field(
        None, ge=0, description="For 1,000 searches of the web by the provider; default: the provider's, if known."
    )
    audio: float | None = Field(None, ge=0, description="For the recordings in a prompt; default: unknown.")

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, data: Any) -> Any:
        """Read `IN/OUT` and `IN/OUT/BATCH`."""
        parts = data.split("/") if isinstance(data, str) else data if isinstance(data, list | tuple) else None
        if parts is None:
            return data
        if len(parts) not in {2, 3}:
            raise PydanticCustomError("price", "should be {form}, US dollars per million tokens", {"form": "IN/OUT"})
        return dict(zip(_IN_OUT, parts, strict=False))


class OtherSettings(Block):
    """The block of another package's backend. That backend checks the block when it is created."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())


def _other_backend(name: str) -> str:
    if name not in backends.installed():
        raise PydanticCustomError("extra_forbidden", "unknown key")
    return name


def _keys(block: object) -> object:
    return {} if block is None else block


_OtherBlocks: TypeAlias = dict[
    Annotated[str, AfterValidator(_other_backend)], Annotated[OtherSettings, BeforeValidator(_keys)]
]


class BackendConfigs(Block):
    """One block per backend; only the chosen one must be complete."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    __pydantic_extra__: _OtherBlocks

    openai: OpenAISettings = OpenAISettings.model_construct()
    hf: HFSettings = HFSettings.model_construct()
    vllm: VLLMSettings = VLLMSettings.model_construct()
    openvino: OpenVINOSettings = OpenVINOSettings.model_construct()


class _OneBackend(Block):
    """The backend of one model."""

    model_config = BackendConfigs.model_config
    __pydantic_extra__: _OtherBlocks

    backend: str | None = Field(None, description="The backend; default: the one whose block is present.")
    openai: OpenAISettings | None = Field(
        None, description="As `backend_configs.openai`, but inherits nothing from it."
    )
    hf: HFSettings | None = Field(None, description="As `backend_configs.hf`, but inherits nothing from it.")
    vllm: VLLMSettings | None = Field(None, description="As `backend_configs.vllm`, but inherits nothing from it.")
    openvino: OpenVINOSettings | None = Field(
        None, description="As `backend_configs.openvino`, but inherits nothing from it."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_block(cls, data: Any) -> Any:
        """Derive the backend from the block that is present."""
        if not isinstance(data, Mapping) or not isinstance(data.get("backend"), str | None):
            return data
        known = BackendConfigs.model_fields
        blocks = [key for key in data if key in known or (key not in cls.model_fields and backends.is_named(key))]
        data = {key: {} if value is None and key in blocks else value for key, value in data.items()}
        named = data.get("backend")
        if len(blocks) > 1 or (named is None and not blocks):
            present = " and ".join(blocks) or "none"
            raise ValueError(f"needs the block of one backend ({', '.join(known)}); it has {present}")
        if named is not None and blocks and named != blocks[0]:
            raise ValueError(f"names the backend {named:.40} but has a block of {blocks[0]}")
        return data if named is not None else {**data, "backend": blocks[0]}


class ModelSettings(_OneBackend):
    """One of several models: its own backend block, and the keys that differ from the rest of the file."""

    sampling_params: Sampling = Field(
        Sampling.model_construct(), description="Override those of the file; null removes a parameter."
    )
    extra_params: dict[str, Any] = Field({}, description="Replace those of the file, which may be for another backend.")
    system_prompt: str | None = Field(None, description="Replaces the file's.")
    image_tag: str | None = Field(None, description="Replaces the file's.")
    price: PriceSettings | None = Field(None, description="US dollars per million tokens of this model.")
    fallback: list[str] = Field(
        [], description="Models that, in this order, answer the items that this model cannot: see docs/models.md."
    )
    idle_unload: float | None = Field(None, gt=0, description="Replaces the file's.")


class _Models(Block):
    """The models, and their parameters."""

    backend: str = Field(
        "openvino",
        description="The backend: `openvino`, `hf`, `openai`, `vllm`; or `auto`, which chooses a server that runs on "
        "this machine, else a provider whose key is set and which has `model_name`, else the small model. "
        "A backend of another package has the name that the package gives it.",
    )
    backend_configs: BackendConfigs = BackendConfigs.model_construct()
    sampling_params: Sampling = Sampling.model_construct()
    extra_params: dict[str, Any] = Field({}, description="Parameters that the engine or the request body gets.")
    models: dict[str, ModelSettings] = Field(
        {}, description="Models that a call or row may name; the model of `backend` above has the name `default`."
    )
    default_model: str | None = Field(
        None,
        description="The model for calls that name none; null: the model of `backend`, or the first of `models` if the "
        "file has no `backend`.",
    )
    idle_unload: float | None = Field(
        None, gt=0, description="Seconds without a call after which an engine of this machine is unloaded."
    )


class _Prompts(Block):
    """The system prompt and the images of prompts."""

    system_prompt: str = Field("", description="The system prompt of calls without one.")
    image_tag: str | None = Field(
        None, description="The text in a prompt that images replace; null: see `image_position`."
    )
    image_position: Literal["after", "before"] = Field(
        "after", description="The place of images without a tag: after or before the prompt's text."
    )
    fetch_images: bool = Field(
        False,
        description="Download web images on this machine, from public addresses only, instead of passing on their "
        "URLs. Local engines always download.",
    )
    max_image_pixels: int = Field(
        89_000_000, ge=1, description="Most pixels of an image; larger ones are refused before they are decoded."
    )
    max_image_memory: int = Field(
        1 << 30,
        ge=1 << 20,
        description="Bytes of memory for decoding images at the same time; a larger image is decoded alone.",
    )


class _Answers(Block):
    """The form of answers and failures in results."""

    reasoning: Literal["separate", "inline"] = Field(
        "separate",
        description="`separate`: reasoning is removed from the answers and kept separately. `inline`: an answer is the "
        "exact text of the model or endpoint, including reasoning.",
    )
    check_retries: int = Field(
        1, ge=0, le=10, description="Number of retries for an answer that does not satisfy its schema or another check."
    )
    cache: bool | str = Field(
        False,
        description="Keep complete answers at temperature 0 on disk and never pay for them again: `true`, the path of "
        "a file, or `all` for answers at any temperature.",
    )
    on_error: Literal["report", "raise"] = Field(
        "report", description="`raise`: one failed item makes the whole call an error."
    )
    unsupported: Literal["warn", "error"] = Field(
        "warn",
        description="The effect of a parameter that a backend does not support. A parameter that a row, or a request "
        "to `/v1`, sets itself is always an error.",
    )


class _Money(Block):
    """Prices, and limits of cost."""

    price: PriceSettings | None = Field(
        None, description="US dollars per million tokens; default: the prices of `genai-prices`."
    )
    prices: dict[str, PriceSettings] = Field({}, description="Prices by model; they take precedence over `price`.")
    max_cost: float | None = Field(
        None, ge=0, description="Spending limit, in US dollars, of a process, or of all runs of a job."
    )
    ask_above_cost: float | None = Field(
        None,
        ge=0,
        description="Ask the user (MCP elicitation) before a call or job if it and those that started without a "
        "question may together cost more than so many US dollars. Requires a known price.",
    )


class Settings(_Money, _Answers, _Prompts, _Models):
    """The whole file."""

    client_limits: ClientLimits = Field(
        ClientLimits.model_construct(),
        description="Limits of a call's choices: `max_tokens` (also applies to calls without it) and `models` (a "
        "list of names). `tokens`: further tokens of a server over HTTP, with models of their own.",
    )
    call_timeout: float | None = Field(
        None, gt=0, description="Most seconds for a call; unanswered items are returned as errors."
    )
    max_call_s: float | None = Field(
        None,
        gt=0,
        description="Seconds after which a call returns the answers so far; the rest continues as a job, which "
        "`bulk_status` reads. For clients that give up after a minute.",
    )
    max_result_bytes: int | None = Field(
        None,
        ge=0,
        description="Largest result of a call in bytes; a larger one is returned as its first answers and a job with "
        "all of them. null: 24 MiB over HTTP; over stdio 9 MiB, because some clients end a session at 10 MiB, and "
        "no limit for clients that are known to have none. 0: no limit.",
    )
    allowed_roots: list[str] | None = Field(
        None,
        description="Folders in which calls may read images, and their jobs may read and write files. null: the "
        "working directory, unless it holds the home folder or is a drive's root; over HTTP: nowhere.",
    )
    allowed_endpoints: list[str] = Field(
        [],
        description="Hosts or addresses that `generation_init` may choose for the text of local files. Others get it "
        "only if the client's user agrees; endpoints of this file and of PROMPTMILL_ENDPOINTS always get it.",
    )

    def with_block(self, backend: str, **changes: object) -> Settings:
        """Return the settings with `changes` to the block of `backend`."""
        block = getattr(self.backend_configs, backend).model_copy(update=changes)
        configs = self.backend_configs.model_copy(update={backend: block})
        return self.model_copy(update={"backend_configs": configs})

    @model_validator(mode="before")
    @classmethod
    def _inline_reasoning(cls, data: Any) -> Any:
        """Apply the file's `reasoning` to sampling parameters that do not set it."""
        if not isinstance(data, dict) or data.get("reasoning") != "inline":
            return data
        sampling = data.get("sampling_params") or {}
        return {**data, "sampling_params": {"reasoning": "inline"} | sampling} if isinstance(sampling, dict) else data
