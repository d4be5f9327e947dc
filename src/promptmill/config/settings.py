"""Typed settings of `parameter.yaml`: every key with default, bounds and meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

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
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from promptmill.config import backends
from promptmill.core.errors import looks_like_key
from promptmill.core.sampling import Sampling


def _gpu_ids(value: object) -> object:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    return value or None


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


GpuIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...] | None, BeforeValidator(_gpu_ids)]
_GPU_IDS = 'GPUs the engine may see: `"2,3"`, `2` or `[2, 3]`; empty: all.'
_MODEL = "A folder, a model hub name, or `smollm2-135m-instruct`, the embedded model."
_DEVICE = r"(auto|cpu|mps|cuda(:\d+)?)"
_REMOTE_CODE = "Run Python code that comes with the model. Counts only from the operator, for the operator's model."


def _has_default(field: FieldInfo | None) -> bool:
    return field is not None and not field.is_required()


class Block(BaseModel):
    """A group of keys; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        """Read `key:` without a value as the default, as people write it in YAML."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {key: value for key, value in data.items() if value is not None or not _has_default(fields.get(key))}

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_a_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` and `false` where a number is meant, which Python would take for 1 and 0."""
        annotation = str(cls.model_fields[info.field_name or ""].annotation)
        given = value if isinstance(value, list | tuple) else [value]
        numeric = ("int" in annotation or "float" in annotation) and "bool" not in annotation
        if numeric and any(isinstance(one, bool) for one in given):
            raise ValueError("should be a number, not true or false")
        return value


class OpenAISettings(Block):
    """Any OpenAI-compatible chat completions endpoint."""

    provider: str | None = Field(
        None, description="A known provider or server, whose address is `base_url`'s default; `promptmill providers`."
    )
    model_name: str | None = Field(
        None, description="The model's name at the endpoint; null: the only one that it has."
    )
    base_url: Annotated[list[str], BeforeValidator(_one_or_many)] = Field(
        [], description="Host, `…/v1` or the whole `…/chat/completions`; or a list of those to share the work."
    )
    api_key: SecretStr | list[SecretStr] | None = Field(
        None, description="The key itself, or a list of keys to share the work; better `api_key_env`."
    )
    api_key_env: str | None = Field(None, description="The environment variable that holds the key.")
    headers: dict[str, SecretStr] = Field({}, description="More headers to send with each request.")
    trust_env: bool = Field(True, description="Use the proxies that the environment names.")
    concurrency: int = Field(
        64,
        ge=1,
        le=65_536,
        description="Most requests in flight, of all calls together. Where it is not set, "
        "a server of your own is given more for as long as it answers more.",
    )
    adaptive: bool = Field(True, description="Find out how many requests in flight the endpoint takes.")
    rpm: float | None = Field(None, gt=0, description="Most requests a minute.")
    tpm: float | None = Field(None, gt=0, description="Most tokens a minute, prompt and answer.")
    retries: int = Field(5, ge=1, le=100, description="Attempts per item in all, counting only failures of that item.")
    base_delay: float = Field(1.0, ge=0, description="First wait before trying again, seconds; doubles each time.")
    max_delay: float = Field(30.0, ge=0, description="Longest wait before trying again, seconds.")
    timeout: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (10, 600), description="Seconds to connect, and the longest silence of the endpoint."
    )
    item_timeout: float | None = Field(None, gt=0, description="Most seconds for one item, retries included.")
    patience: float = Field(120, gt=0, description="Seconds to bear with an endpoint that answers nothing at all.")
    max_connections: int | None = Field(None, ge=1, description="Most open connections; default: as many as requests.")
    stream: bool = Field(
        False, description="Receive answers piece by piece, so that a hung answer ends by its silence."
    )
    hedge: bool = Field(
        False,
        description="Send a request that takes far longer than others once more, at most one in twenty; the first "
        "answer counts.",
    )
    dedupe: bool = Field(False, description="Send identical requests of a call only once, at temperature 0.")
    num_workers: int | None = Field(
        None, ge=1, le=256, description="Worker processes for large work; default: as many as cores, at most 8."
    )
    worker_concurrency: int | None = Field(
        None, ge=1, description="Requests in flight per worker; default: their share."
    )
    bulk_threshold: int = Field(20_000, ge=1, description="Prompts of one call from which on workers share it.")
    enable_thinking: bool | None = Field(None, description="As in `sampling_params`, which goes first.")

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name and looks_like_key(name):
            raise ValueError("is to be the NAME of an environment variable, such as OPENAI_API_KEY, and holds a key")
        return name

    @field_validator("timeout", mode="before")
    @classmethod
    def _seconds(cls, timeout: Any) -> Any:
        if isinstance(timeout, str):
            raise ValueError("should be seconds as a number, such as 300, or two: [to connect, the longest silence]")
        return timeout

    @model_validator(mode="before")
    @classmethod
    def _timeout_pair(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("timeout"), int | float):
            return {**data, "timeout": (min(10, data["timeout"]), data["timeout"])}
        return data


class HFSettings(Block):
    """A Hugging Face transformers model, run here."""

    model_name_or_path: str | None = Field(None, description=_MODEL)
    gpu_ids: GpuIds = Field(None, description=_GPU_IDS)
    trust_remote_code: bool = Field(False, description=_REMOTE_CODE)
    batch_size: int | None = Field(
        None, ge=1, le=4096, description="Most prompts computed together; default: by the model's size and free memory."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights."
    )
    device: str = Field("auto", pattern=f"^{_DEVICE}$", description="`auto`, `cpu`, `cuda`, `cuda:0`, `mps`.")
    gguf_file: str | None = Field(None, description="Name of a GGUF file in the model's folder.")
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = Field(
        None, description="How attention is computed; null: as transformers chooses."
    )

    @model_validator(mode="before")
    @classmethod
    def _transformers_names(cls, data: Any) -> Any:
        """Take what programs of transformers write: `torch_dtype`, and `device_map` where it names one place."""
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
    """A vLLM engine, run here. Every engine argument of vLLM goes through."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_name_or_path: str | None = Field(None, description=_MODEL)
    gpu_ids: GpuIds = Field(None, description=_GPU_IDS)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1, description="Share of each GPU's memory to take.")
    dtype: str = Field("auto", description="Number format of the weights.")
    lora_modules: dict[str, str] | None = Field(
        None, description="LoRA adapters by name: their folders. A call takes one with `extra_params: {lora: NAME}`."
    )
    trust_remote_code: bool = Field(False, description=_REMOTE_CODE)


class OpenVINOSettings(Block):
    """A model on this machine's CPU with OpenVINO, without torch."""

    model_name_or_path: str | None = Field(
        None,
        description="A folder in OpenVINO's format, a GGUF file (Llama and Qwen families), a model hub name, or "
        "`smollm2-135m-instruct`, the embedded model.",
    )
    gguf_file: str | None = Field(None, description="Name of a GGUF file in the model's folder.")
    threads: int | None = Field(None, ge=1, le=1024, description="Threads that compute; default: one per core.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format to compute in; `auto`: the fastest of this processor."
    )
    cache_gb: int | None = Field(
        None, ge=1, description="GiB for what running prompts have computed; default: a quarter of free memory."
    )


class ClientLimits(Block):
    """What a client may choose for its own calls at most. Does not bind a trusted one."""

    max_tokens: int | None = Field(None, ge=1, description="Longest answer that a call may ask for, or get, in tokens.")
    models: list[str] | None = Field(None, description="Models that a call may choose; null: any.")


class PriceSettings(Block):
    """What a million tokens cost."""

    input: float = Field(ge=0, description="Of the prompt.")
    output: float = Field(ge=0, description="Of the answer, reasoning included.")
    cached_input: float | None = Field(
        None, ge=0, description="Of the part of a prompt that the endpoint had read before; default: as `input`."
    )


class OtherSettings(Block):
    """The block of another package's backend, which checks it when it is made."""

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

    openai: OpenAISettings = OpenAISettings()
    hf: HFSettings = HFSettings()
    vllm: VLLMSettings = VLLMSettings()
    openvino: OpenVINOSettings = OpenVINOSettings()


class ModelSettings(Block):
    """One of several models: a backend's block of its own, and what differs from the rest of the file."""

    model_config = BackendConfigs.model_config
    __pydantic_extra__: _OtherBlocks

    backend: str | None = Field(None, description="Which backend answers; default: the one whose block is here.")
    openai: OpenAISettings | None = Field(None, description="As `backend_configs.openai`, of which it takes nothing.")
    hf: HFSettings | None = Field(None, description="As `backend_configs.hf`, of which it takes nothing.")
    vllm: VLLMSettings | None = Field(None, description="As `backend_configs.vllm`, of which it takes nothing.")
    openvino: OpenVINOSettings | None = Field(
        None, description="As `backend_configs.openvino`, of which it takes nothing."
    )
    sampling_params: Sampling = Field(Sampling(), description="Over the file's; null takes a parameter out.")
    extra_params: dict[str, Any] = Field({}, description="Instead of the file's, which may be for another backend.")
    system_prompt: str | None = Field(None, description="Instead of the file's.")
    image_tag: str | None = Field(None, description="Instead of the file's.")
    price: PriceSettings | None = Field(None, description="What a million tokens of this model cost, in US dollars.")
    fallback: list[str] = Field(
        [], description="Models that answer, in this order, what this one cannot: see docs/models.md."
    )
    idle_unload: float | None = Field(None, gt=0, description="Instead of the file's.")

    @model_validator(mode="before")
    @classmethod
    def _one_block(cls, data: Any) -> Any:
        """Read the backend off the block that is there."""
        if not isinstance(data, Mapping):
            return data
        known = BackendConfigs.model_fields
        blocks = [key for key in data if key in known or (key not in cls.model_fields and backends.is_named(key))]
        data = {key: {} if value is None and key in blocks else value for key, value in data.items()}
        named = data.get("backend")
        if len(blocks) > 1 or (named is None and not blocks):
            found = " and ".join(blocks) or "none"
            raise ValueError(f"needs one backend's block ({', '.join(known)}); it has {found}")
        if named is not None and blocks and named != blocks[0]:
            raise ValueError(f"names the backend {named:.40} but has a block of {blocks[0]}")
        return data if named is not None else {**data, "backend": blocks[0]}


class Settings(Block):
    """The whole file."""

    backend: str = Field(
        "openvino",
        description="Which backend answers: `openvino`, `hf`, `openai`, `vllm`; or `auto`: a server that runs on this "
        "machine, else a provider whose key is set and which has `model_name`, else the embedded model. A backend of "
        "another package goes by that package's name for it.",
    )
    backend_configs: BackendConfigs = BackendConfigs()
    sampling_params: Sampling = Sampling()
    extra_params: dict[str, Any] = Field({}, description="Goes through to the engine or into the request body.")
    models: dict[str, ModelSettings] = Field(
        {}, description="Models that a call or row may name; the file's own backend is the model `default`."
    )
    default_model: str | None = Field(
        None,
        description="Which of `models` answers where none is named; null: the file's own backend, or, where the file "
        "names none, the first of `models`.",
    )
    idle_unload: float | None = Field(
        None, gt=0, description="Seconds after which an engine of this machine that nobody asked is unloaded."
    )
    reasoning: Literal["separate", "inline"] = Field(
        "separate",
        description="`separate`: reasoning is kept apart from the answers. `inline`: an answer's text is exactly what "
        "the model or endpoint gave, reasoning in it included.",
    )
    client_limits: ClientLimits = Field(
        ClientLimits(),
        description="What a call may choose at most: `max_tokens` (also for calls that choose nothing) and `models` (a "
        "list of names).",
    )
    system_prompt: str = Field("", description="Used when a call brings none.")
    image_tag: str | None = Field(None, description="Where images go in a prompt; null: where `image_position` says.")
    image_position: Literal["after", "before"] = Field(
        "after", description="Whether images without a tag follow the prompt's text or go before it."
    )
    on_error: Literal["report", "raise"] = Field(
        "report", description="`raise`: any failed item makes the call an error."
    )
    unsupported: Literal["warn", "error"] = Field(
        "warn", description="What a parameter does that a backend cannot take."
    )
    schema_retries: int = Field(
        1, ge=0, le=10, description="How often an answer is asked for again that does not satisfy its schema."
    )
    cache: bool | str = Field(
        False,
        description="Keep complete answers at temperature 0 on disk and never pay for them again: `true`, a file's "
        "path, or `all` for those at any temperature.",
    )
    price: PriceSettings | None = Field(
        None, description="US dollars that a million tokens of the model cost; else as `genai-prices` has it."
    )
    max_cost: float | None = Field(
        None,
        ge=0,
        description="Most US dollars that this process, or a job in all its runs, may spend; needs `max_tokens`.",
    )
    call_timeout: float | None = Field(
        None, gt=0, description="Most seconds for a call; the rest comes back as errors."
    )
    max_call_s: float | None = Field(
        None,
        gt=0,
        description="Seconds after which a call returns with what is done; the rest goes on as a job that "
        "`bulk_results` reads. For clients that give up after a minute.",
    )
    allowed_roots: list[str] | None = Field(
        None,
        description="Folders that images may be read from, and that jobs of a call may read and write in; "
        "null: anywhere, and for jobs the working directory; over HTTP nowhere.",
    )
    fetch_images: bool = Field(
        False,
        description="Download web images here, instead of passing their URLs on; from public addresses only. "
        "Engines that run here always do, having nobody to pass a URL on to.",
    )
    max_image_pixels: int = Field(89_000_000, ge=1, description="Larger images are refused before they are decoded.")
    max_result_bytes: int | None = Field(
        None,
        ge=0,
        description="Largest result of a call; a larger one comes as its first answers and a job with all of them. "
        "null: 9 MiB over stdio, for the clients that end a session at 10 MiB; none for those known to have no limit. "
        "0: no limit.",
    )
    max_image_memory: int = Field(
        1 << 30, ge=1 << 20, description="Bytes for decoding images, all at once; a larger one is decoded alone."
    )

    @model_validator(mode="before")
    @classmethod
    def _inline_reasoning(cls, data: Any) -> Any:
        """Have `reasoning` of the file hold for sampling parameters that say nothing of it."""
        if not isinstance(data, dict) or data.get("reasoning") != "inline":
            return data
        sampling = data.get("sampling_params") or {}
        return {**data, "sampling_params": {"reasoning": "inline"} | sampling} if isinstance(sampling, dict) else data
