"""Profiles of providers and servers, in a table that is searched by name, host or port.

`READ` is the date on which addresses, keys and options were last compared with the providers' documentation. An
unlisted host gets all parameters unchanged. No profile has a default model, because models change every year.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from promptmill.backends.batches import BatchLimits
from promptmill.backends.openai.batches.profile import CHATS_ONLY, OPENAIS_PATHS, BatchProfile
from promptmill.backends.openai.error_body import Cause, ErrorBody
from promptmill.backends.prompt_cache import UNKNOWN, PromptCache
from promptmill.core.request import CACHE_MARKS, FileKind
from promptmill.core.wording import did_you_mean
from promptmill.images.files import FileLimits

READ = "2026-11-21"
JsonForm: TypeAlias = Literal["strict", "schema", "grammar", "object", "words"]
"""`strict`: a schema in OpenAI's strict subset; `schema`: any schema; `grammar`: a schema that llama.cpp can convert to
a grammar; `object`: JSON mode; `words`: instructions instead of `response_format`."""

# Models that reason at every provider (help.aliyun.com/zh/model-studio/deep-thinking, docs.sglang.io on separate
# reasoning).
_ALWAYS_THINKING = re.compile(r"(?i)\bqwq|\bqvq|(?<!non)[-:]thinking\b|deepseek-r1|deepseek-reasoner|minimax-m2")


@dataclass(frozen=True, slots=True)
class Site:
    """A provider's address, the variable of its key, and the page that documents its API."""

    base_url: str = ""
    """The address that `provider: NAME` means; `""` if each customer has a different address."""
    key_env: str = ""
    """The variable that usually holds the provider's key. This key is sent only to the provider's hosts."""
    page: str = ""
    public: bool = True
    ports: tuple[int, ...] = ()
    more_hosts: tuple[str, ...] = ()
    """The provider's hosts in addition to the host of a public `base_url`."""
    header_env: Mapping[str, str] = field(default_factory=dict)
    """Headers that are sent to these hosts together with an operator's key, each with its environment variable."""
    regions: re.Pattern[str] | None = None
    """Matches the provider's hosts whose names contain the name of a region."""
    example: str = ""
    """An example address, if the provider has several addresses and thus no `base_url`."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The provider's hosts; each includes its subdomains."""
        host = urlsplit(self.base_url).hostname if self.public else None
        return (host, *self.more_hosts) if host else self.more_hosts

    def has(self, host: str) -> bool:
        """Return whether the provider is at `host`."""
        if self.regions is not None and self.regions.fullmatch(host):
            return True
        return any(host == known or host.endswith("." + known) for known in self.hosts)


@dataclass(frozen=True, slots=True)
class ProviderParameters:
    """The parameters that a provider does not accept under OpenAI's name."""

    refused: frozenset[str] = frozenset()
    """Body keys that cause a 4xx or have no effect."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    reasoning_models: re.Pattern[str] | None = None
    """Matches the models that use `max_completion_tokens` and also refuse `reasoning_refused`."""
    reasoning_refused: frozenset[str] = frozenset()

    def are_for_reasoning(self, model: str) -> bool:
        """Return whether `model` is one of the `reasoning_models`."""
        return self.reasoning_models is not None and self.reasoning_models.search(model) is not None


@dataclass(frozen=True, slots=True)
class Thinking:
    """The way to switch a model's thinking on and off.

    `switch` is the form in which requests send `enable_thinking`. `template`: in `chat_template_kwargs`; `top_level`: a
    body key of this name; `type_object`: `thinking: {type: enabled}`; `effort`: `reasoning_effort: none` switches it
    off; `refused`: no switch.
    """

    switch: Literal["template", "top_level", "type_object", "effort", "refused"] = "template"
    on: str = "enabled"
    """The type that switches thinking on if `switch` is `type_object`."""
    always: re.Pattern[str] | None = None
    """The provider's models whose thinking cannot be switched off, in addition to `_ALWAYS_THINKING`."""

    def is_fixed(self, model: str) -> bool:
        """Return whether thinking cannot be switched off."""
        return bool((self.always is not None and self.always.search(model)) or _ALWAYS_THINKING.search(model))

    def write(self, body: dict[str, Any], model: str, *, wanted: bool) -> bool:
        """Write `enable_thinking` into a body. Return False if thinking cannot be switched as `wanted`."""
        if self.is_fixed(model):
            return wanted
        if self.switch == "template":
            body["chat_template_kwargs"] = {**(body.get("chat_template_kwargs") or {}), "enable_thinking": wanted}
        elif self.switch == "top_level":
            body["enable_thinking"] = wanted
        elif self.switch == "type_object":
            body["thinking"] = {"type": self.on if wanted else "disabled"}
        elif self.switch == "effort" and not wanted:
            body["reasoning_effort"] = "none"
        return self.switch != "refused"


@dataclass(frozen=True, slots=True)
class JsonSupport:
    """The forms in which a provider takes requests for JSON."""

    form: JsonForm = "schema"
    """The form of a request for JSON."""
    has_json_mode: bool = True
    """Whether the provider accepts `response_format: {type: json_object}`."""
    shows: bool = False
    """Whether the provider is known to show a schema to the model, and not only to constrain the answer by it."""

    @property
    def is_in_words(self) -> bool:
        """Whether only the prompt has the schema."""
        return self.form in {"object", "words"}

    @property
    def is_shown(self) -> bool:
        """Whether the model is known to see the schema: in the prompt, or because the provider shows it."""
        return self.shows or self.is_in_words


@dataclass(frozen=True, slots=True)
class ImageSupport:
    """The images that a provider takes."""

    from_web: bool = True
    """Whether the provider downloads images from the web. Otherwise, it accepts them only inside the request."""
    types: frozenset[str] | None = None
    """The media types that the provider supports; None if it supports all types that models read."""


@dataclass(frozen=True, slots=True)
class ErrorWords:
    """The causes of a provider's errors."""

    codes: Mapping[str, Cause] = field(default_factory=dict)
    """The causes of the provider's error codes. A key is `field=number`, or the lower-case word of `code` or `type`."""
    phrases: Mapping[str, Cause] = field(default_factory=dict)
    """Phrases, in lower case, that have another meaning at this provider than at others, and their causes here."""

    def cause_of(self, body: ErrorBody) -> Cause | None:
        """Return the cause that this provider's codes and phrases give for an error body, or None."""
        codes = [*(f"{name}={number}" for name, number in body.numbers.items()), *body.codes]
        if known := next((cause for code in codes if (cause := self.codes.get(code))), None):
            return known
        return next((cause for phrase, cause in self.phrases.items() if phrase in body.text), None)


@dataclass(frozen=True, slots=True)
class DecisionLimits:
    """The limits of a request to a model that decides."""

    questions: int
    options: int = 255
    levels: int = 10
    sure_options: int = 255
    """The options that every server of this API takes."""


@dataclass(frozen=True, slots=True)
class DecisionProfile:
    """The limits and prices of a provider's models that decide."""

    limits: DecisionLimits
    prices: Mapping[str, float] = field(default_factory=dict)
    """US dollars for a million input tokens, by a part of the model's name; `""`: all other models. Output is free."""

    def price(self, model: str) -> float | None:
        """Return the price of the first part in `prices` that occurs in the model's name; None if no part does."""
        return next((price for part, price in self.prices.items() if part in model), None)


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """One provider."""

    name: str
    site: Site
    dialect: str = "openai"
    """The default API of the provider; the configuration may choose another. `openai` is chat completions."""
    parameters: ProviderParameters = ProviderParameters()
    thinking: Thinking = Thinking()
    json: JsonSupport = JsonSupport()
    images: ImageSupport = ImageSupport()
    files: Mapping[FileKind, FileLimits] = field(default_factory=dict)
    """The kinds of files that the provider takes unchanged, and their limits. Whether it takes others is unknown."""
    errors: ErrorWords = ErrorWords()
    cuts_prompts: bool = False
    """Whether the provider may shorten a prompt that exceeds its context, and answer without an error."""
    account_tier: bool = False
    """Whether the account determines the service tier of requests that name no tier."""
    prompt_cache: PromptCache = UNKNOWN
    batch: BatchProfile | None = None
    """The provider's Batch API; None if it is unknown."""
    decisions: DecisionProfile | None = None
    """The limits and prices of deciding models, whose API has the dialect `dialect`; None in other profiles."""

    def may_think(self, model: str, *, wanted: bool | None, effort: str | None) -> bool:
        """Return whether `model` is known to think. `wanted`: `enable_thinking`. `effort`: `reasoning_effort`."""
        if self.thinking.is_fixed(model):
            return True
        if wanted is False or effort == "none":
            return False
        return wanted is True or effort is not None or self.parameters.are_for_reasoning(model)


def translate(profile: ProviderProfile, model: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `(body keys, names of unsupported parameters)`. `given`: the sampling and the extra parameters."""
    body = dict(given)
    refused: list[str] = []
    wanted = body.pop("enable_thinking", None)
    if wanted is not None and not profile.thinking.write(body, model, wanted=wanted):
        refused.append("enable_thinking")
    names = profile.parameters
    off = names.refused
    if names.are_for_reasoning(model):
        off |= names.reasoning_refused
        if "max_tokens" in body:
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
    refused += [name for name in body if name in off]
    return {names.renamed.get(name, name): value for name, value in body.items() if name not in off}, refused


_NOT_OPENAIS = frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "structured_outputs"})
_OPENAIS = ProviderParameters(_NOT_OPENAIS)
_NO_SWITCH = Thinking("refused")


def _codes(field_name: str, **causes: str) -> ErrorWords:
    """Return the causes of error codes. A code is a number in the field `field_name`, or a word."""
    codes = {
        f"{field_name}={code}" if code.lstrip("-").isdigit() else code.lower(): Cause[cause]
        for cause, listed in causes.items()
        for code in listed.split()
    }
    return ErrorWords(MappingProxyType(codes))


# GPT-5.6 and later: developers.openai.com/api/docs/guides/prompt-caching, "Prompt cache breakpoints". Not gpt-35-turbo.
_BREAKPOINTS = re.compile(r"\bgpt-(?:5\.(?:[6-9]|\d\d)|[6-9]|1\d)(?!\d)")
# "Cache limitations": platform.claude.com/docs/en/build-with-claude/prompt-caching
_LEAST_OF_CLAUDE = (
    (re.compile(r"claude-(?:opus|fable|mythos)-[5-9]"), 512),
    (re.compile(r"claude-(?:opus-4[-.]7|3(?:[-.]5)?-haiku|haiku-3)"), 2048),
    (re.compile(r"claude-(?:haiku-4[-.]5|opus-4[-.][56])(?!\d)"), 4096),
)
_AUTOMATIC_CACHE = PromptCache("automatic")
_SAMPLING = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"})

# PDFs: developers.openai.com/api/docs/guides/file-inputs, 50 MB in a request; recordings: …/audio-chat-completions, for
# `gpt-audio`, whose page lists no structured outputs. No page limits their size; 25 MB is the limit of transcriptions.
_FILES_OF_OPENAI: Mapping[FileKind, FileLimits] = MappingProxyType(
    {
        "pdf": FileLimits(50_000_000),
        "audio": FileLimits(25_000_000, forms=frozenset({"wav", "mp3"}), takes_schema=False),
    }
)

_OPENAI = ProviderProfile(
    "openai",
    Site(
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
        "developers.openai.com/api/reference/resources/chat",
        header_env=MappingProxyType({"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}),
    ),
    parameters=ProviderParameters(
        _NOT_OPENAIS, reasoning_models=re.compile(r"(?:^|/)(?:o\d|gpt-[5-9](?!.*chat))"), reasoning_refused=_SAMPLING
    ),
    thinking=_NO_SWITCH,
    json=JsonSupport("strict", shows=True),
    files=_FILES_OF_OPENAI,
    account_tier=True,
    prompt_cache=PromptCache("key", _BREAKPOINTS),
    batch=BatchProfile(discount=0.5, page="developers.openai.com/api/docs/guides/batch", other_paths=OPENAIS_PATHS),
)

DASHSCOPE_PHRASES: Mapping[str, Cause] = MappingProxyType(
    {"throttling.": Cause.RATE, "allocated quota exceeded": Cause.RATE, "error-code#token-limit": Cause.RATE}
)

# LM Studio's 400 while it loads or swaps a model: lmstudio-ai/lmstudio-bug-tracker#1347.
_LOADING: Mapping[str, Cause] = MappingProxyType({"failed to load model": Cause.BUSY})
# Other formats are refused or ignored by some servers (ggml-org/llama.cpp#28230, ollama/ollama#17755).
_EVERY_SERVER_READS = frozenset({"image/png", "image/jpeg"})

PROFILES: tuple[ProviderProfile, ...] = (
    _OPENAI,
    # not `public`: any customer can have a host in this domain, so the key is sent only at the user's request
    replace(
        _OPENAI,
        name="azure",
        site=Site(
            key_env="AZURE_OPENAI_API_KEY",
            page="learn.microsoft.com/azure/ai-services/openai/api-version-lifecycle",
            public=False,
            more_hosts=("openai.azure.com",),
            example="https://NAME.openai.azure.com/…",
        ),
        # at most 20 MB of audio: learn.microsoft.com/azure/ai-foundry/openai/audio-completions-quickstart
        files={**_FILES_OF_OPENAI, "audio": replace(_FILES_OF_OPENAI["audio"], size=20_000_000)},
        batch=BatchProfile(
            limits=BatchLimits(requests=100_000, poll_s=60.0),
            checks_files=True,
            discount=0.5,
            page="learn.microsoft.com/azure/ai-foundry/openai/how-to/batch",
            other_paths=CHATS_ONLY,
        ),
    ),
    # Claude needs `…/anthropic/v1` and `dialect: anthropic`. Not `public`: a key is for one region
    ProviderProfile(
        "bedrock",
        Site(
            key_env="AWS_BEARER_TOKEN_BEDROCK",
            page="docs.aws.amazon.com/bedrock/latest/userguide/inference-chat-completions",
            public=False,
            example="https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1",
            regions=re.compile(
                r"bedrock-(?:runtime(?:-fips)?\.[a-z0-9-]+\.amazonaws\.com|mantle\.[a-z0-9-]+\.api\.aws)"
            ),
        ),
        parameters=_OPENAIS,
        thinking=_NO_SWITCH,
        # "Explicit Prompt Caching": docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching
        prompt_cache=PromptCache(None, _BREAKPOINTS),
        batch=BatchProfile(family="none"),
    ),
    ProviderProfile(
        "mistral",
        Site("https://api.mistral.ai/v1", "MISTRAL_API_KEY", "docs.mistral.ai/api"),
        parameters=ProviderParameters(_NOT_OPENAIS, renamed=MappingProxyType({"seed": "random_seed"})),
        thinking=_NO_SWITCH,
        # "always prepended by default to the System Prompt": docs.mistral.ai, custom structured outputs
        json=JsonSupport(shows=True),
        errors=_codes("code", RATE="1300 3505", MODEL="1500"),
        batch=BatchProfile(
            family="mistral",
            names_path=False,
            limits=BatchLimits(requests=100_000, file_bytes=512_000_000),
            discount=0.5,
            page="docs.mistral.ai/studio-api/batch-processing",
        ),
    ),
    ProviderProfile(
        "groq",
        Site("https://api.groq.com/openai/v1", "GROQ_API_KEY", "console.groq.com/docs/openai"),
        parameters=_OPENAIS,
        thinking=_NO_SWITCH,
        json=JsonSupport("object"),
        batch=BatchProfile(
            limits=BatchLimits(file_bytes=100_000_000),
            discount=0.5,
            page="console.groq.com/docs/batch",
            other_paths=CHATS_ONLY,
        ),
    ),
    ProviderProfile(
        "google",
        Site(
            "https://generativelanguage.googleapis.com/v1beta", "GEMINI_API_KEY", "ai.google.dev/gemini-api/docs/openai"
        ),
        dialect="gemini",
        parameters=_OPENAIS,
        thinking=Thinking("effort", always=re.compile(r"gemini-2\.5-pro|gemini-[3-9]")),
        json=JsonSupport(shows=True),  # "counts towards the input token limit": ai.google.dev, structured output
        # ai.google.dev/gemini-api/docs/file-input-methods: 100 MB when encoded, PDFs 50; …/document-processing; …/audio
        files=MappingProxyType(
            {
                "pdf": FileLimits(50_000_000, pages=1_000),
                "audio": FileLimits(75_000_000, forms=frozenset({"wav", "mp3", "aiff", "aac", "ogg", "flac"})),
            }
        ),
        prompt_cache=_AUTOMATIC_CACHE,
        batch=BatchProfile(
            family="gemini",
            checks_files=True,
            purpose="",
            limits=BatchLimits(file_bytes=2_000_000_000),
            label="displayName",
            discount=0.5,
            page="ai.google.dev/gemini-api/docs/batch-api",
            other_paths=CHATS_ONLY,
        ),
    ),
    ProviderProfile(
        "dashscope",
        Site(
            "https://dashscope.aliyuncs.com/compatible-mode/v1",
            "DASHSCOPE_API_KEY",
            "help.aliyun.com/zh/model-studio/deep-thinking",
            more_hosts=("dashscope-intl.aliyuncs.com",),
        ),
        thinking=Thinking("top_level"),
        json=JsonSupport("object"),
        # "Explicit cache": help.aliyun.com/zh/model-studio/context-cache
        prompt_cache=PromptCache(marks=frozenset({"cache_control"})),
        batch=BatchProfile(
            limits=BatchLimits(file_bytes=500_000_000),
            discount=0.5,
            page="alibabacloud.com/help/en/model-studio/batch-inference",
        ),
        # DashScope's code for a limit of tokens per minute; for unpaid bills, its code is `Arrearage`
        errors=ErrorWords(phrases=MappingProxyType({"insufficient_quota": Cause.RATE, **DASHSCOPE_PHRASES})),
    ),
    ProviderProfile(
        "siliconflow",
        Site(
            "https://api.siliconflow.cn/v1",
            "SILICONFLOW_API_KEY",
            "docs.siliconflow.cn/docs/api/chat-completions-post",
            more_hosts=("api.siliconflow.com",),
        ),
        thinking=Thinking("top_level"),
        json=JsonSupport("object"),
        errors=_codes("code", MODEL="20012", QUOTA="30001 30003 30011", BUSY="50501 50505 50507 60000"),
    ),
    ProviderProfile(
        "glm",
        Site(
            "https://open.bigmodel.cn/api/paas/v4",
            "ZAI_API_KEY",
            "docs.bigmodel.cn/cn/guide/capabilities/thinking",
            more_hosts=("api.z.ai",),
        ),
        thinking=Thinking("type_object", always=re.compile(r"glm-5\.3")),
        json=JsonSupport("object"),
        errors=_codes(
            "code",
            KEY="1000 1001 1002 1003 1004 1110 1111 1112 1120 1121 1220",
            QUOTA="1113 1304 1309 1311",
            MODEL="1211 1212 1221 1222",
            INPUT="1210 1213 1214 1215",
            CONTEXT="1261",
            FILTER="1301",
            RATE="1302 1303 1305 1308 1310 1312 1313",
            BUSY="1200 1230 1234",
        ),
    ),
    ProviderProfile(
        "minimax",
        Site(
            "https://api.minimax.io/v1",
            "MINIMAX_API_KEY",
            "platform.minimax.io/docs/api-reference/text-openai-api",
            more_hosts=("api.minimaxi.com", "api.minimax.chat"),
        ),
        thinking=Thinking("type_object", on="adaptive", always=re.compile(r"(?i)minimax-m[12]")),
        errors=_codes(
            "status_code",
            RATE="1002 1039 1041 2045",
            KEY="1004 2049",
            QUOTA="1008 2056",
            FILTER="1026 1027",
            INPUT="2013 1042",
            BUSY="1000 1001 1013 1024 1033",
        ),
    ),
    ProviderProfile(
        "qianfan",
        Site(
            "https://qianfan.baidubce.com/v2",
            "QIANFAN_API_KEY",
            "cloud.baidu.com/doc/qianfan/s/Hmh4suq26",
            more_hosts=("aip.baidubce.com",),
        ),
        errors=_codes(
            "error_code",
            RATE="4 18 336100 336501 336502",
            QUOTA="17 19",
            KEY="6 13 14 100 110 111",
            INPUT="336000 336001 336002 336003 336006 336007",
            BUSY="1 2",
        ),
    ),
    ProviderProfile(
        "spark",
        Site("https://spark-api-open.xf-yun.com/v1", "SPARK_API_KEY", "docs.iflyaicloud.com/doc/237"),
        errors=_codes(
            "code",
            FILTER="10013 10014 10019",
            CONTEXT="10907",
            RATE="10007 10008 11202 11203",
            QUOTA="11201",
            KEY="11200 11221",
            INPUT="10163",
            BUSY="10012 10110 10222 10223",
        ),
    ),
    ProviderProfile(
        "sensenova",
        Site(
            "https://token.sensenova.cn/v1",
            "SENSENOVA_API_KEY",
            "github.com/OpenSenseNova/SenseNova6.7/blob/main/API.md",
            more_hosts=("api.sensenova.cn",),
        ),
        thinking=_NO_SWITCH,
        json=JsonSupport("words"),
        errors=_codes("code", INPUT="3", KEY="7 16", MODEL="5", RATE="8", FILTER="18 19", BUSY="2 13 14"),
    ),
    ProviderProfile(
        "anthropic",
        Site("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", "platform.claude.com/docs/en/api/openai-sdk"),
        dialect="anthropic",
        # "`temperature` is deprecated for this model": platform.claude.com/docs/en/about-claude/models/migration-guide
        parameters=ProviderParameters(
            _NOT_OPENAIS,
            reasoning_models=re.compile(r"claude-(?:opus-(?:4-[7-9]|[5-9])|(?:sonnet|haiku)-[5-9]|fable|mythos)"),
            reasoning_refused=_SAMPLING,
        ),
        thinking=_NO_SWITCH,
        json=JsonSupport("words"),
        # 32 MB per request, and 600 pages, or 100 for models whose context has less than a million tokens:
        # platform.claude.com/docs/en/build-with-claude/pdf-support
        files=MappingProxyType({"pdf": FileLimits(23_900_000, pages=600)}),
        prompt_cache=PromptCache("marks", least=_LEAST_OF_CLAUDE),
        batch=BatchProfile(
            family="anthropic",
            limits=BatchLimits(requests=100_000, file_bytes=256_000_000),
            label="",
            discount=0.5,
            page="platform.claude.com/docs/en/build-with-claude/batch-processing",
            other_paths=CHATS_ONLY,
        ),
    ),
    ProviderProfile(
        "deepseek",
        Site("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", "api-docs.deepseek.com/guides/thinking_mode"),
        parameters=_OPENAIS,
        thinking=Thinking("type_object"),
        json=JsonSupport("object"),
        prompt_cache=_AUTOMATIC_CACHE,
    ),
    ProviderProfile(
        "xai",
        Site("https://api.x.ai/v1", "XAI_API_KEY", "docs.x.ai/docs/guides/chat-completions"),
        parameters=_OPENAIS,
        thinking=_NO_SWITCH,
        prompt_cache=_AUTOMATIC_CACHE,
        batch=BatchProfile(
            family="xai",
            limits=BatchLimits(file_bytes=48_000_000, poll_s=60.0),  # the Files API's limit; the Batch API states none
            label="name",
            discount=0.2,
            page="docs.x.ai/docs/guides/batch-api",
            other_paths=CHATS_ONLY,
        ),
    ),
    ProviderProfile(
        "cerebras",
        Site("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY", "inference-docs.cerebras.ai/resources/openai"),
        parameters=ProviderParameters(_NOT_OPENAIS | {"frequency_penalty", "presence_penalty"}),
        thinking=_NO_SWITCH,
        json=JsonSupport("strict"),
    ),
    ProviderProfile(
        "openrouter",
        Site("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", "openrouter.ai/docs/use-cases/reasoning-tokens"),
        parameters=ProviderParameters(frozenset({"chat_template_kwargs"})),
        thinking=Thinking("effort"),
        # openrouter.ai/docs/guides/overview/multimodal/pdfs and …/audio, which state no limits of sizes
        files=MappingProxyType(
            {
                "pdf": FileLimits(50_000_000),
                "audio": FileLimits(25_000_000, forms=frozenset({"wav", "mp3", "aiff", "aac", "ogg", "flac", "m4a"})),
            }
        ),
        # openrouter.ai/docs/guides/best-practices/prompt-caching, and `PromptCacheOptions` of its API reference
        prompt_cache=PromptCache(None, _BREAKPOINTS, frozenset({"cache_control"})),
        batch=BatchProfile(
            family="openrouter",
            # a fifth of the provider's limit, because one body contains all results, and each can take 64 KB
            limits=BatchLimits(requests=1_000, takes_local_images=False),
            names_path=False,
            label="",
            can_cancel=False,
            page="openrouter.ai/docs/guides/features/batch-api",
        ),
    ),
    ProviderProfile(
        "together",
        Site(
            "https://api.together.ai/v1",
            "TOGETHER_API_KEY",
            "docs.together.ai/docs/inference/openai-compatibility",
            more_hosts=("api.together.xyz",),
        ),
        batch=BatchProfile(
            family="together",
            limits=BatchLimits(file_bytes=100_000_000),
            label="",
            purpose="batch-api",
            names_path=False,
            page="docs.together.ai/docs/inference/batch/manage",
            other_paths=CHATS_ONLY,
        ),
    ),
    ProviderProfile(
        "fireworks",
        Site("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", "docs.fireworks.ai/guides/reasoning"),
        thinking=Thinking("effort"),
        batch=BatchProfile(
            family="fireworks",
            names_path=False,
            # the provider does not limit requests; 500 MB hold 5 million of the shortest possible lines (100 bytes)
            limits=BatchLimits(requests=5_000_000, file_bytes=500_000_000),
            label="id",
            discount=0.5,
            can_cancel=False,
            page="docs.fireworks.ai/guides/batch-inference",
            other_paths=CHATS_ONLY,
        ),
    ),
    ProviderProfile("nvidia", Site("https://integrate.api.nvidia.com/v1", "NVIDIA_API_KEY", "build.nvidia.com")),
    ProviderProfile(
        "huggingface",
        Site(
            "https://router.huggingface.co/v1",
            "HF_TOKEN",
            "huggingface.co/changelog/inference-providers-openai-compatible",
        ),
    ),
    ProviderProfile(
        "ollama",
        Site(
            "http://127.0.0.1:11434/v1", page="docs.ollama.com/api/openai-compatibility", public=False, ports=(11434,)
        ),
        # parameters that have no effect and cause no error
        parameters=ProviderParameters(
            frozenset({"repetition_penalty", "logit_bias", "chat_template_kwargs", "structured_outputs"})
        ),
        thinking=Thinking("effort"),
        json=JsonSupport("grammar"),
        images=ImageSupport(from_web=False, types=_EVERY_SERVER_READS),
        cuts_prompts=True,
    ),
    ProviderProfile(
        "lmstudio",
        Site(
            "http://127.0.0.1:1234/v1",
            "LM_STUDIO_API_KEY",
            "lmstudio.ai/docs/api/openai-api",
            public=False,
            ports=(1234,),
        ),
        json=JsonSupport("grammar", has_json_mode=False),
        images=ImageSupport(from_web=False, types=_EVERY_SERVER_READS),
        errors=ErrorWords(phrases=_LOADING),
    ),
    ProviderProfile(
        "cohere",
        Site(
            "https://api.cohere.ai/compatibility/v1",
            "COHERE_API_KEY",
            "docs.cohere.com/docs/compatibility-api",
            more_hosts=("api.cohere.com",),
        ),
        parameters=_OPENAIS,
        thinking=_NO_SWITCH,
    ),
    ProviderProfile(
        "deepinfra",
        Site("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY", "deepinfra.com/docs/advanced/openai_api"),
    ),
    ProviderProfile(
        "doubleword",
        Site("https://api.doubleword.ai/v1", "DOUBLEWORD_API_KEY", "docs.doubleword.ai/inference-api"),
        batch=BatchProfile(page="docs.doubleword.ai/inference-api"),
    ),
    ProviderProfile(
        "sambanova",
        Site(
            "https://api.sambanova.ai/v1",
            "SAMBANOVA_API_KEY",
            "docs.sambanova.ai/docs/en/features/openai-compatibility",
        ),
    ),
    ProviderProfile(
        "perplexity",
        Site(
            "https://api.perplexity.ai/v1",
            "PERPLEXITY_API_KEY",
            "docs.perplexity.ai/docs/agent-api",
        ),
        dialect="responses",  # chat completions ended on 2026-09-27 (vercel/ai, @ai-sdk/perplexity 5.0.0)
        thinking=_NO_SWITCH,
    ),
    ProviderProfile(
        "github",
        Site("https://models.github.ai/inference", "GITHUB_TOKEN", "docs.github.com/en/github-models/quickstart"),
        parameters=_OPENAIS,
        thinking=_NO_SWITCH,
    ),
    ProviderProfile(
        "kimi",
        Site(
            "https://api.moonshot.cn/v1",
            "MOONSHOT_API_KEY",
            "platform.kimi.ai/docs/guide/use-kimi-vision-model",
            more_hosts=("api.moonshot.ai",),
        ),
        # "invalid temperature: only 1 is allowed for this model": platform.kimi.ai/docs/api/models-overview
        parameters=ProviderParameters(
            _NOT_OPENAIS, reasoning_models=re.compile(r"kimi-k(?:2\.[5-9]|[3-9])"), reasoning_refused=_SAMPLING
        ),
        thinking=Thinking("type_object", always=re.compile(r"kimi-k3|kimi-k2\.7-code")),
        json=JsonSupport("object"),
        images=ImageSupport(from_web=False),
    ),
    ProviderProfile(
        "doubao",
        Site("https://ark.cn-beijing.volces.com/api/v3", "ARK_API_KEY", "www.volcengine.com/docs/82379/1263482"),
        parameters=_OPENAIS,
        thinking=Thinking("type_object"),
    ),
    ProviderProfile(
        "ppio",
        Site(
            "https://api.ppio.com/openai/v1",
            "PPIO_API_KEY",
            "raw.githubusercontent.com/PPIO/ppio-skills/main/skills/ppio-docs/references/llm-guide.md",
            more_hosts=("api.ppinfra.com",),
        ),
    ),
    ProviderProfile(
        "aiping",
        Site("https://aiping.cn/api/v1", "AIPING_API_KEY", "www.aiping.cn/docs/API/text-models"),
        thinking=Thinking("top_level"),
        json=JsonSupport("object"),
    ),
    ProviderProfile(
        "hunyuan",
        Site(
            "https://api.hunyuan.cloud.tencent.com/v1",
            "HUNYUAN_API_KEY",
            "cloud.tencent.com/document/product/1729/111007",
        ),
        thinking=Thinking("top_level"),
    ),
    ProviderProfile(
        "stepfun",
        Site(
            "https://api.stepfun.com/v1",
            "STEPFUN_API_KEY",
            "platform.stepfun.com/docs/zh/overview/quickstart",
            more_hosts=("api.stepfun.ai",),
        ),
        thinking=_NO_SWITCH,
    ),
    ProviderProfile(
        "novita",
        Site(
            "https://api.novita.ai/openai/v1",
            "NOVITA_API_KEY",
            "raw.githubusercontent.com/novitalabs/novita-skills/main/skills/novita-docs/references/quick-start.md",
        ),
    ),
    ProviderProfile(
        "nebius",
        Site(
            "https://api.tokenfactory.nebius.com/v1",
            "NEBIUS_API_KEY",
            "docs.tokenfactory.nebius.com/api-reference/introduction",
            more_hosts=("api.studio.nebius.com", "api.studio.nebius.ai"),
        ),
    ),
    # self-hosted servers, at their default addresses
    ProviderProfile(
        "vllm",
        Site(
            "http://127.0.0.1:8000/v1",
            "VLLM_API_KEY",
            "docs.vllm.ai/en/stable/serving/openai_compatible_server",
            public=False,
        ),
        # `input_audio`: docs.vllm.ai/en/stable/features/multimodal_inputs; the limit of the size is promptmill's own
        files=MappingProxyType({"audio": FileLimits(25_000_000)}),
    ),
    ProviderProfile(
        "sglang",
        Site(
            "http://127.0.0.1:30000/v1",
            "SGLANG_API_KEY",
            "docs.sglang.io/docs/advanced_features/separate_reasoning",
            public=False,
        ),
    ),
    ProviderProfile(
        "llama.cpp",
        Site(
            "http://127.0.0.1:8080/v1",
            page="github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
            public=False,
        ),
        json=JsonSupport("grammar"),
        images=ImageSupport(types=_EVERY_SERVER_READS),
    ),
    ProviderProfile(
        "tgi",
        Site(
            "http://127.0.0.1:3000/v1", page="huggingface.co/docs/text-generation-inference/messages_api", public=False
        ),
    ),
)


def _of_decisions(
    name: str,
    site: Site,
    limits: DecisionLimits,
    prices: Mapping[str, float],
    *,
    dialect: str = "systemone",
    errors: ErrorWords = ErrorWords(),
) -> ProviderProfile:
    decisions = DecisionProfile(limits, MappingProxyType(dict(prices)))
    family = BatchProfile(family="none")  # no provider runs decisions in batches
    images = ImageSupport(from_web=False)
    return ProviderProfile(name, site, dialect, images=images, errors=errors, batch=family, decisions=decisions)


# Models that decide. URLs and keys: litellm 1.110.2 and the vendors' packages. Prices: litellm's list and the vendors'
# pages. If a vendor states no limit of questions, the limit is the largest number that is known to work.
PROFILES += (
    _of_decisions(
        "typesafe",
        Site("https://api.typesafe.ai/v1", "TYPESAFE_API_KEY", "docs.typesafe.ai"),
        DecisionLimits(400),
        {"": 0.042},
    ),
    _of_decisions(
        "openai-decisions",
        Site("https://api.openai.com/v1", "OPENAI_API_KEY", "developers.openai.com/api/docs/guides/decisions"),
        DecisionLimits(400),
        {"gpt-6-luna": 0.10},
        dialect="decisions",
    ),
    _of_decisions(
        "gemini-decisions",
        Site(
            "https://generativelanguage.googleapis.com/v1beta", "GEMINI_API_KEY", "ai.google.dev/gemini-api/docs/openai"
        ),
        DecisionLimits(1000, levels=255),
        {"gemini-decision": 0.10},
        dialect="gemini-decisions",
    ),
    _of_decisions(
        "openrouter-decisions",
        Site("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", "openrouter.ai/docs"),
        DecisionLimits(200),
        {"jev": 0.042, "luna": 0.10, "gemini-decision": 0.10, "clef-flash": 0.09, "clef": 0.24, "solar-decide": 0.05},
    ),
    _of_decisions(
        "vercel-decisions",
        Site("https://ai-gateway.vercel.sh/v1", "AI_GATEWAY_API_KEY", "vercel.com/docs/ai-gateway"),
        DecisionLimits(200),
        {"jev": 0.042, "luna": 0.10, "gemini-decision": 0.10},
        dialect="decisions",
    ),
    _of_decisions(
        "fireworks-decisions",
        Site("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", "docs.fireworks.ai"),
        DecisionLimits(64, options=208),
        {"rune": 0.042},
    ),
    _of_decisions(
        "perplexity-decisions",
        Site("https://api.perplexity.ai/v1/decisions", "PERPLEXITY_API_KEY", "docs.perplexity.ai"),
        DecisionLimits(128),
        {"flash": 0.01, "": 0.02},
    ),
    _of_decisions(
        "cloudflare-decisions",
        Site(
            key_env="CLOUDFLARE_API_TOKEN",
            page="developers.cloudflare.com/workers-ai",
            more_hosts=("api.cloudflare.com",),
            example="https://api.cloudflare.com/client/v4/accounts/ACCOUNT_ID/ai/run",
        ),
        DecisionLimits(64),
        {"clef-flash": 0.09, "clef-omni": 0.15, "clef": 0.24},
        errors=_codes("code", DAY="3036", RATE="3040"),
    ),
    # not `public`, for the same reason as azure
    _of_decisions(
        "databricks-decisions",
        Site(
            key_env="DATABRICKS_TOKEN",
            page="docs.databricks.com",
            public=False,
            more_hosts=("cloud.databricks.com", "azuredatabricks.net", "gcp.databricks.com"),
            example="https://HOST/serving-endpoints/databricks-typesafeai-jev-1-14-0/invocations",
        ),
        DecisionLimits(64),
        {"": 0.042},
    ),
    _of_decisions(
        "upstage-decisions",
        Site("https://api.upstage.ai/v1", "UPSTAGE_API_KEY", "console.upstage.ai/docs"),
        DecisionLimits(64),
        {"solar-decide": 0.10},
    ),
    _of_decisions(
        "bespoke-decisions",
        Site("https://api.bespokelabs.ai/v1", "BESPOKE_API_KEY", "docs.bespokelabs.ai"),
        DecisionLimits(64, levels=255),
        {"": 0.04},
    ),
    _of_decisions(
        "baseten-decisions",
        Site("https://inference.baseten.co/v1", "BASETEN_API_KEY", "docs.baseten.co"),
        DecisionLimits(64),
        {"joey": 0.01, "elephant": 0.035, "mammoth": 0.10},
        dialect="decisions",
    ),
)

_TELLING = len("code=12345")


def _agreed() -> Mapping[str, Cause]:
    """Return the codes that have the same meaning in all profiles and are too long to be ambiguous."""
    causes: dict[str, Cause] = {}
    differing: set[str] = set()
    for profile in PROFILES:
        for code, cause in profile.errors.codes.items():
            if causes.setdefault(code, cause) is not cause or len(code) < _TELLING:
                differing.add(code)
    return MappingProxyType({code: cause for code, cause in causes.items() if code not in differing})


# The profile of an unlisted host, which gets all parameters unchanged. The host may be a gateway, which passes on the
# codes of other providers.
PLAIN = ProviderProfile(
    "plain",
    Site(public=False),
    errors=ErrorWords(_agreed(), DASHSCOPE_PHRASES),
    prompt_cache=PromptCache(marks=CACHE_MARKS),
)
# The profile of an unknown server on this machine or in its network. It is probably llama.cpp; other servers work
# without the features that llama.cpp lacks. The server may ignore an image that it cannot read, and report no error.
LOCAL = replace(
    PLAIN,
    name="local",
    json=JsonSupport("grammar"),
    images=ImageSupport(types=_EVERY_SERVER_READS),
    errors=replace(PLAIN.errors, phrases=MappingProxyType({**DASHSCOPE_PHRASES, **_LOADING})),
    cuts_prompts=True,
)
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"qwen": "dashscope", "gemini": "google", "moonshot": "kimi", "zhipu": "glm", "zai": "glm", "claude": "anthropic"}
)


def profile_at(url: SplitResult) -> ProviderProfile:
    """Return the profile for the endpoint at `url`, by its host or its well-known local port."""
    return _profile_at(url.hostname or "", url.port)


@functools.lru_cache
def _profile_at(host: str, port: int | None) -> ProviderProfile:
    for profile in PROFILES:
        if profile.site.has(host):
            return profile
        if port in profile.site.ports:
            return profile
    return PLAIN


def deciding(profile: ProviderProfile, dialect: str) -> ProviderProfile:
    """Return the same provider's profile for models that decide in this dialect; if there is none, `profile`."""
    if profile.decisions is not None or not profile.site.hosts:
        return profile
    rows = (row for row in PROFILES if row.decisions is not None and row.dialect == dialect)
    return next((row for row in rows if not {*row.site.hosts}.isdisjoint(profile.site.hosts)), profile)


def profile_named(name: str) -> ProviderProfile:
    """Return the profile called `name`; `PLAIN` for an unknown name."""
    return next((profile for profile in (*PROFILES, LOCAL) if profile.name == name), PLAIN)


def profile_of(name: str) -> ProviderProfile:
    """Return the profile for `provider: NAME`, which may be an alias. Raises `KeyError` that suggests a known name."""
    wanted = name.strip().lower()
    named = profile_named(_ALIASES.get(wanted, wanted))
    if named is PLAIN or named is LOCAL:
        known = [profile.name for profile in PROFILES]
        raise KeyError(did_you_mean(wanted, [*known, *_ALIASES], f"known providers: {', '.join(known)}."))
    return named
