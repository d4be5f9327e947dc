"""Profiles of providers and servers as rows of a table, with lookups by name, host or port.

`page` is the provider's page, `READ` the date on which addresses, keys and options were last compared with it. An
unlisted host gets all parameters unchanged. No profile has a default model, because models change every year.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from promptmill.backends.batches import BatchLimits
from promptmill.backends.openai.batches.profile import BatchProfile
from promptmill.backends.openai.error_body import Cause, ErrorBody
from promptmill.core.wording import did_you_mean

READ = "2026-11-21"
JsonForm: TypeAlias = Literal["strict", "schema", "grammar", "object", "words"]
"""`strict`: a schema in OpenAI's strict subset; `schema`: any schema; `grammar`: a schema that llama.cpp can convert to
a grammar; `object`: JSON mode; `words`: instructions instead of `response_format`."""

# Models that reason at every provider (help.aliyun.com/zh/model-studio/deep-thinking, docs.sglang.io on separate
# reasoning).
_ALWAYS_THINKING = re.compile(r"(?i)\bqwq|\bqvq|(?<!non)[-:]thinking\b|deepseek-r1|deepseek-reasoner|minimax-m2")


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """One provider. `refused`: body keys that cause a 4xx or have no effect.

    `thinking`: the form of `enable_thinking` (`type_object`: `thinking: {type: enabled}`; `effort`: `reasoning_effort:
    none` switches it off). `json_form`: the form of a request for JSON. `reasoning_models`: matches models that use
    `max_completion_tokens` and refuse `reasoning_refused`.
    """

    name: str
    more_hosts: tuple[str, ...] = ()
    """The provider's hosts in addition to the host of a public `base_url`."""
    ports: tuple[int, ...] = ()
    public: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    thinking: Literal["template", "top_level", "type_object", "effort", "refused"] = "template"
    json_form: JsonForm = "schema"
    reasoning_models: re.Pattern[str] | None = None
    reasoning_refused: frozenset[str] = frozenset()
    base_url: str = ""
    """The address that `provider: NAME` means."""
    key_env: str = ""
    """The variable that usually holds the provider's key. This key is sent only to the provider's hosts."""
    page: str = ""
    """The provider's page with these facts."""
    images: Literal["url", "data"] = "url"
    """`url`: the provider downloads images from the web; `data`: it accepts them only inside the request."""
    image_types: frozenset[str] | None = None
    """The media types that the provider supports; None: all types that models read."""
    takes_json_mode: bool = True
    """Whether the provider accepts `response_format: {type: json_object}`."""
    cuts_prompts: bool = False
    """Whether the provider may shorten a prompt that exceeds its context, and answer without an error."""
    thinking_on: str = "enabled"
    """The type that switches thinking on if `thinking` is `type_object`."""
    always_thinking: re.Pattern[str] | None = None
    """The provider's models whose thinking cannot be switched off, in addition to those that always think."""
    dialect: str = "openai"
    """The default API of the provider; the configuration may choose another. `openai` is chat completions."""
    account_tier: bool = False
    """Whether the account determines the service tier of a request that names no tier."""
    codes: Mapping[str, Cause] = field(default_factory=dict)
    """The cause of each of the provider's error codes: `field=number`, or the lower-case word of `code` or `type`."""
    phrases: Mapping[str, Cause] = field(default_factory=dict)
    """The provider's phrases, in lower case, and their causes, if they mean something else at other providers."""
    batch: BatchProfile | None = None
    """The provider's Batch API; None: unknown."""
    prompt_cache: Literal["", "automatic", "key", "marks"] = ""
    """The way to cache beginnings of prompts: automatically; for requests with the same `prompt_cache_key`; or up to a
    `cache_control` in a request of the provider's dialect. `""`: unknown."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The provider's hosts; each includes its subdomains."""
        host = urlsplit(self.base_url).hostname if self.public else None
        return (host, *self.more_hosts) if host else self.more_hosts

    def always_thinks(self, model: str) -> bool:
        """Return whether thinking cannot be switched off."""
        own = self.always_thinking is not None and self.always_thinking.search(model)
        return bool(own or _ALWAYS_THINKING.search(model))

    def cause_of(self, body: ErrorBody) -> Cause | None:
        """Return the cause that this provider's codes and phrases give for an error body, or None."""
        codes = [*(f"{name}={number}" for name, number in body.numbers.items()), *body.codes]
        if known := next((cause for code in codes if (cause := self.codes.get(code))), None):
            return known
        return next((cause for phrase, cause in self.phrases.items() if phrase in body.text), None)


def translate(profile: ProviderProfile, model: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `(body keys, names of unsupported parameters)` for `given`, which has sampling and extra parameters."""
    body = dict(given)
    refused: list[str] = []
    thinking = body.pop("enable_thinking", None)
    if thinking is not None and profile.always_thinks(model):
        if not thinking:
            refused.append("enable_thinking")
    elif thinking is not None:
        if profile.thinking == "template":
            body["chat_template_kwargs"] = {**(body.get("chat_template_kwargs") or {}), "enable_thinking": thinking}
        elif profile.thinking == "top_level":
            body["enable_thinking"] = thinking
        elif profile.thinking == "type_object":
            body["thinking"] = {"type": profile.thinking_on if thinking else "disabled"}
        elif profile.thinking == "effort":
            if not thinking:
                body["reasoning_effort"] = "none"
        else:
            refused.append("enable_thinking")
    off = profile.refused
    if profile.reasoning_models and profile.reasoning_models.search(model):
        off |= profile.reasoning_refused
        if "max_tokens" in body:
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
    refused += [name for name in body if name in off]
    return {profile.renamed.get(name, name): value for name, value in body.items() if name not in off}, refused


_NOT_OPENAIS = frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "structured_outputs"})


def _codes(field_name: str, **numbers: str) -> Mapping[str, Cause]:
    """Return the causes by code, from the codes of each cause: numbers in the field `field_name`, or words."""
    return MappingProxyType(
        {
            f"{field_name}={code}" if code.lstrip("-").isdigit() else code.lower(): Cause[cause]
            for cause, listed in numbers.items()
            for code in listed.split()
        }
    )


_SAMPLING = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"})

_OPENAI = ProviderProfile(
    "openai",
    refused=_NOT_OPENAIS,
    thinking="refused",
    json_form="strict",
    reasoning_models=re.compile(r"(?:^|/)(?:o\d|gpt-[5-9](?!.*chat))"),
    reasoning_refused=_SAMPLING,
    base_url="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    account_tier=True,
    prompt_cache="key",
    page="developers.openai.com/api/reference/resources/chat",
    batch=BatchProfile(discount=0.5, page="developers.openai.com/api/docs/guides/batch"),
)

DASHSCOPE_PHRASES: Mapping[str, Cause] = MappingProxyType(
    {"throttling.": Cause.RATE, "allocated quota exceeded": Cause.RATE, "error-code#token-limit": Cause.RATE}
)

# LM Studio's 400 while it loads or swaps a model: lmstudio-ai/lmstudio-bug-tracker#1347.
_LOADING: Mapping[str, Cause] = MappingProxyType({"failed to load model": Cause.BUSY})
# Other formats are refused or silently ignored: ggml-org/llama.cpp#28230, ollama/ollama#17755.
_EVERY_SERVER_READS = frozenset({"image/png", "image/jpeg"})

PROFILES = (
    _OPENAI,
    # not public: any customer can have a host there, so the key is sent only on request
    replace(
        _OPENAI,
        name="azure",
        more_hosts=("openai.azure.com",),
        public=False,
        base_url="",
        page="learn.microsoft.com/azure/ai-services/openai/api-version-lifecycle",
        key_env="AZURE_OPENAI_API_KEY",
        batch=BatchProfile(
            limits=BatchLimits(requests=100_000, poll_s=60.0),
            checks_files=True,
            discount=0.5,
            page="learn.microsoft.com/azure/ai-foundry/openai/how-to/batch",
        ),
    ),
    ProviderProfile(
        "mistral",
        renamed=MappingProxyType({"seed": "random_seed"}),
        refused=_NOT_OPENAIS,
        thinking="refused",
        codes=_codes("code", RATE="1300 3505", MODEL="1500"),
        base_url="https://api.mistral.ai/v1",
        key_env="MISTRAL_API_KEY",
        page="docs.mistral.ai/api",
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
        refused=_NOT_OPENAIS,
        thinking="refused",
        json_form="object",
        base_url="https://api.groq.com/openai/v1",
        key_env="GROQ_API_KEY",
        page="console.groq.com/docs/openai",
        batch=BatchProfile(
            limits=BatchLimits(file_bytes=100_000_000), discount=0.5, page="console.groq.com/docs/batch"
        ),
    ),
    ProviderProfile(
        "google",
        dialect="gemini",
        prompt_cache="automatic",
        refused=_NOT_OPENAIS,
        thinking="effort",
        always_thinking=re.compile(r"gemini-2\.5-pro|gemini-[3-9]"),
        base_url="https://generativelanguage.googleapis.com/v1beta",
        key_env="GEMINI_API_KEY",
        page="ai.google.dev/gemini-api/docs/openai",
        batch=BatchProfile(
            family="gemini",
            checks_files=True,
            purpose="",
            limits=BatchLimits(file_bytes=2_000_000_000),
            label="displayName",
            discount=0.5,
            page="ai.google.dev/gemini-api/docs/batch-api",
        ),
    ),
    ProviderProfile(
        "dashscope",
        more_hosts=("dashscope-intl.aliyuncs.com",),
        thinking="top_level",
        json_form="object",
        # the code for tokens per minute; the code for missing money is `Arrearage`
        phrases=MappingProxyType({"insufficient_quota": Cause.RATE, **DASHSCOPE_PHRASES}),
        base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
        key_env="DASHSCOPE_API_KEY",
        page="help.aliyun.com/zh/model-studio/deep-thinking",
    ),
    ProviderProfile(
        "siliconflow",
        more_hosts=("api.siliconflow.com",),
        thinking="top_level",
        json_form="object",
        codes=_codes("code", MODEL="20012", QUOTA="30001 30003 30011", BUSY="50501 50505 50507 60000"),
        base_url="https://api.siliconflow.cn/v1",
        key_env="SILICONFLOW_API_KEY",
        page="docs.siliconflow.cn/docs/api/chat-completions-post",
    ),
    ProviderProfile(
        "glm",
        more_hosts=("api.z.ai",),
        thinking="type_object",
        always_thinking=re.compile(r"glm-5\.3"),
        json_form="object",
        codes=_codes(
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
        base_url="https://open.bigmodel.cn/api/paas/v4",
        key_env="ZAI_API_KEY",
        page="docs.bigmodel.cn/cn/guide/capabilities/thinking",
    ),
    ProviderProfile(
        "minimax",
        more_hosts=("api.minimaxi.com", "api.minimax.chat"),
        codes=_codes(
            "status_code",
            RATE="1002 1039 1041 2045",
            KEY="1004 2049",
            QUOTA="1008 2056",
            FILTER="1026 1027",
            INPUT="2013 1042",
            BUSY="1000 1001 1013 1024 1033",
        ),
        base_url="https://api.minimax.io/v1",
        key_env="MINIMAX_API_KEY",
        thinking="type_object",
        thinking_on="adaptive",
        always_thinking=re.compile(r"(?i)minimax-m[12]"),
        page="platform.minimax.io/docs/api-reference/text-openai-api",
    ),
    ProviderProfile(
        "qianfan",
        more_hosts=("aip.baidubce.com",),
        codes=_codes(
            "error_code",
            RATE="4 18 336100 336501 336502",
            QUOTA="17 19",
            KEY="6 13 14 100 110 111",
            INPUT="336000 336001 336002 336003 336006 336007",
            BUSY="1 2",
        ),
        base_url="https://qianfan.baidubce.com/v2",
        key_env="QIANFAN_API_KEY",
        page="cloud.baidu.com/doc/qianfan/s/Hmh4suq26",
    ),
    ProviderProfile(
        "spark",
        codes=_codes(
            "code",
            FILTER="10013 10014 10019",
            CONTEXT="10907",
            RATE="10007 10008 11202 11203",
            QUOTA="11201",
            KEY="11200 11221",
            INPUT="10163",
            BUSY="10012 10110 10222 10223",
        ),
        base_url="https://spark-api-open.xf-yun.com/v1",
        key_env="SPARK_API_KEY",
        page="docs.iflyaicloud.com/doc/237",
    ),
    ProviderProfile(
        "sensenova",
        more_hosts=("api.sensenova.cn",),
        codes=_codes("code", INPUT="3", KEY="7 16", MODEL="5", RATE="8", FILTER="18 19", BUSY="2 13 14"),
        base_url="https://token.sensenova.cn/v1",
        thinking="refused",
        json_form="words",
        key_env="SENSENOVA_API_KEY",
        page="github.com/OpenSenseNova/SenseNova6.7/blob/main/API.md",
    ),
    ProviderProfile(
        "anthropic",
        dialect="anthropic",
        prompt_cache="marks",
        refused=_NOT_OPENAIS,
        thinking="refused",
        json_form="words",
        # "`temperature` is deprecated for this model": platform.claude.com/docs/en/about-claude/models/migration-guide
        reasoning_models=re.compile(r"claude-(?:opus-(?:4-[7-9]|[5-9])|(?:sonnet|haiku)-[5-9]|fable|mythos)"),
        reasoning_refused=_SAMPLING,
        base_url="https://api.anthropic.com/v1",
        key_env="ANTHROPIC_API_KEY",
        page="platform.claude.com/docs/en/api/openai-sdk",
        batch=BatchProfile(
            family="anthropic",
            limits=BatchLimits(requests=100_000, file_bytes=256_000_000),
            label="",
            discount=0.5,
            page="platform.claude.com/docs/en/build-with-claude/batch-processing",
        ),
    ),
    ProviderProfile(
        "deepseek",
        prompt_cache="automatic",
        refused=_NOT_OPENAIS,
        thinking="type_object",
        json_form="object",
        base_url="https://api.deepseek.com/v1",
        key_env="DEEPSEEK_API_KEY",
        page="api-docs.deepseek.com/guides/thinking_mode",
    ),
    ProviderProfile(
        "xai",
        prompt_cache="automatic",
        refused=_NOT_OPENAIS,
        thinking="refused",
        base_url="https://api.x.ai/v1",
        key_env="XAI_API_KEY",
        page="docs.x.ai/docs/guides/chat-completions",
        batch=BatchProfile(family="none"),
    ),
    ProviderProfile(
        "cerebras",
        refused=_NOT_OPENAIS | {"frequency_penalty", "presence_penalty"},
        thinking="refused",
        json_form="strict",
        base_url="https://api.cerebras.ai/v1",
        key_env="CEREBRAS_API_KEY",
        page="inference-docs.cerebras.ai/resources/openai",
    ),
    ProviderProfile(
        "openrouter",
        refused=frozenset({"chat_template_kwargs"}),
        thinking="effort",
        base_url="https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        page="openrouter.ai/docs/use-cases/reasoning-tokens",
        batch=BatchProfile(
            family="openrouter",
            limits=BatchLimits(requests=1_000, takes_local_images=False),  # 64 KB for each result in one body
            names_path=False,
            label="",
            can_cancel=False,
            page="openrouter.ai/docs/guides/features/batch-api",
        ),
    ),
    ProviderProfile(
        "together",
        more_hosts=("api.together.xyz",),
        base_url="https://api.together.ai/v1",
        key_env="TOGETHER_API_KEY",
        page="docs.together.ai/docs/inference/openai-compatibility",
        batch=BatchProfile(
            family="together",
            limits=BatchLimits(file_bytes=100_000_000),
            label="",
            purpose="batch-api",
            names_path=False,
            page="docs.together.ai/docs/inference/batch/manage",
        ),
    ),
    ProviderProfile(
        "fireworks",
        base_url="https://api.fireworks.ai/inference/v1",
        key_env="FIREWORKS_API_KEY",
        thinking="effort",
        page="docs.fireworks.ai/guides/reasoning",
        batch=BatchProfile(
            family="fireworks",
            names_path=False,
            limits=BatchLimits(file_bytes=150_000_000),
            label="id",
            discount=0.5,
            can_cancel=False,
            page="docs.fireworks.ai/guides/batch-inference",
        ),
    ),
    ProviderProfile(
        "nvidia",
        base_url="https://integrate.api.nvidia.com/v1",
        key_env="NVIDIA_API_KEY",
        page="build.nvidia.com",
    ),
    ProviderProfile(
        "huggingface",
        base_url="https://router.huggingface.co/v1",
        key_env="HF_TOKEN",
        page="huggingface.co/changelog/inference-providers-openai-compatible",
    ),
    ProviderProfile(
        "ollama",
        ports=(11434,),
        public=False,
        # ignored without an error
        refused=frozenset({"repetition_penalty", "logit_bias", "chat_template_kwargs", "structured_outputs"}),
        base_url="http://127.0.0.1:11434/v1",
        thinking="effort",
        json_form="grammar",
        images="data",
        image_types=_EVERY_SERVER_READS,
        cuts_prompts=True,
        page="docs.ollama.com/api/openai-compatibility",
    ),
    ProviderProfile(
        "lmstudio",
        ports=(1234,),
        public=False,
        base_url="http://127.0.0.1:1234/v1",
        json_form="grammar",
        takes_json_mode=False,
        images="data",
        image_types=_EVERY_SERVER_READS,
        phrases=_LOADING,
        key_env="LM_STUDIO_API_KEY",
        page="lmstudio.ai/docs/api/openai-api",
    ),
    ProviderProfile(
        "cohere",
        more_hosts=("api.cohere.com",),
        base_url="https://api.cohere.ai/compatibility/v1",
        key_env="COHERE_API_KEY",
        page="docs.cohere.com/docs/compatibility-api",
        refused=_NOT_OPENAIS,
        thinking="refused",
    ),
    ProviderProfile(
        "deepinfra",
        base_url="https://api.deepinfra.com/v1/openai",
        key_env="DEEPINFRA_API_KEY",
        page="deepinfra.com/docs/advanced/openai_api",
    ),
    ProviderProfile(
        "doubleword",
        base_url="https://api.doubleword.ai/v1",
        key_env="DOUBLEWORD_API_KEY",
        page="docs.doubleword.ai/inference-api",
        batch=BatchProfile(page="docs.doubleword.ai/inference-api"),
    ),
    ProviderProfile(
        "sambanova",
        base_url="https://api.sambanova.ai/v1",
        key_env="SAMBANOVA_API_KEY",
        page="docs.sambanova.ai/docs/en/features/openai-compatibility",
    ),
    ProviderProfile(
        "perplexity",
        base_url="https://api.perplexity.ai/chat/completions",
        key_env="PERPLEXITY_API_KEY",
        page="docs.perplexity.ai/docs/sonar/openai-compatibility",
        thinking="refused",
    ),
    ProviderProfile(
        "github",
        base_url="https://models.github.ai/inference",
        key_env="GITHUB_TOKEN",
        page="docs.github.com/en/github-models/quickstart",
        refused=_NOT_OPENAIS,
        thinking="refused",
    ),
    ProviderProfile(
        "kimi",
        more_hosts=("api.moonshot.ai",),
        base_url="https://api.moonshot.cn/v1",
        key_env="MOONSHOT_API_KEY",
        page="platform.kimi.ai/docs/guide/use-kimi-vision-model",
        refused=_NOT_OPENAIS,
        thinking="type_object",
        always_thinking=re.compile(r"kimi-k3|kimi-k2\.7-code"),
        # "invalid temperature: only 1 is allowed for this model": platform.kimi.ai/docs/api/models-overview
        reasoning_models=re.compile(r"kimi-k(?:2\.[5-9]|[3-9])"),
        reasoning_refused=_SAMPLING,
        images="data",
        json_form="object",
    ),
    ProviderProfile(
        "doubao",
        base_url="https://ark.cn-beijing.volces.com/api/v3",
        key_env="ARK_API_KEY",
        page="www.volcengine.com/docs/82379/1263482",
        refused=_NOT_OPENAIS,
        thinking="type_object",
    ),
    ProviderProfile(
        "ppio",
        more_hosts=("api.ppinfra.com",),
        base_url="https://api.ppio.com/openai/v1",
        key_env="PPIO_API_KEY",
        page="raw.githubusercontent.com/PPIO/ppio-skills/main/skills/ppio-docs/references/llm-guide.md",
    ),
    ProviderProfile(
        "aiping",
        base_url="https://aiping.cn/api/v1",
        key_env="AIPING_API_KEY",
        page="www.aiping.cn/docs/API/text-models",
        thinking="top_level",
        json_form="object",
    ),
    ProviderProfile(
        "hunyuan",
        base_url="https://api.hunyuan.cloud.tencent.com/v1",
        key_env="HUNYUAN_API_KEY",
        page="cloud.tencent.com/document/product/1729/111007",
        thinking="top_level",
    ),
    ProviderProfile(
        "stepfun",
        more_hosts=("api.stepfun.ai",),
        base_url="https://api.stepfun.com/v1",
        key_env="STEPFUN_API_KEY",
        page="platform.stepfun.com/docs/zh/overview/quickstart",
        thinking="refused",
    ),
    ProviderProfile(
        "novita",
        base_url="https://api.novita.ai/openai/v1",
        key_env="NOVITA_API_KEY",
        page="raw.githubusercontent.com/novitalabs/novita-skills/main/skills/novita-docs/references/quick-start.md",
    ),
    ProviderProfile(
        "nebius",
        more_hosts=("api.studio.nebius.com", "api.studio.nebius.ai"),
        base_url="https://api.tokenfactory.nebius.com/v1",
        key_env="NEBIUS_API_KEY",
        page="docs.tokenfactory.nebius.com/api-reference/introduction",
    ),
    # self-hosted servers, at their default addresses
    ProviderProfile(
        "vllm",
        public=False,
        base_url="http://127.0.0.1:8000/v1",
        key_env="VLLM_API_KEY",
        page="docs.vllm.ai/en/stable/serving/openai_compatible_server",
    ),
    ProviderProfile(
        "sglang",
        public=False,
        base_url="http://127.0.0.1:30000/v1",
        key_env="SGLANG_API_KEY",
        page="docs.sglang.io/docs/advanced_features/separate_reasoning",
    ),
    ProviderProfile(
        "llama.cpp",
        public=False,
        base_url="http://127.0.0.1:8080/v1",
        json_form="grammar",
        image_types=_EVERY_SERVER_READS,
        page="github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md",
    ),
    ProviderProfile(
        "tgi",
        public=False,
        base_url="http://127.0.0.1:3000/v1",
        page="huggingface.co/docs/text-generation-inference/messages_api",
    ),
)


_TELLING = len("code=12345")


def _agreed() -> Mapping[str, Cause]:
    """Return the codes that have the same meaning in all profiles and are too long to be ambiguous."""
    causes: dict[str, Cause] = {}
    differing: set[str] = set()
    for profile in PROFILES:
        for code, cause in profile.codes.items():
            if causes.setdefault(code, cause) is not cause or len(code) < _TELLING:
                differing.add(code)
    return MappingProxyType({code: cause for code, cause in causes.items() if code not in differing})


# The profile of an unlisted host, to which parameters are sent unchanged. The host may be a gateway, which passes on
# other providers' codes.
PLAIN = ProviderProfile("plain", public=False, codes=_agreed(), phrases=DASHSCOPE_PHRASES)
# An unknown server on this machine or in its network, probably built on llama.cpp; other servers work without the
# features that llama.cpp lacks.
LOCAL = replace(
    PLAIN,
    name="local",
    json_form="grammar",
    image_types=_EVERY_SERVER_READS,
    cuts_prompts=True,
    phrases=MappingProxyType({**PLAIN.phrases, **_LOADING}),
)
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"qwen": "dashscope", "gemini": "google", "moonshot": "kimi", "zhipu": "glm", "zai": "glm", "claude": "anthropic"}
)


def profile_at(url: SplitResult) -> ProviderProfile:
    """Return the profile for the endpoint at `url`, by its host or its well-known local port."""
    host, port = url.hostname or "", url.port
    for profile in PROFILES:
        if any(host == known or host.endswith("." + known) for known in profile.hosts):
            return profile
        if port in profile.ports:
            return profile
    return PLAIN


def profile_named(name: str) -> ProviderProfile:
    """Return the profile called `name`; `PLAIN` for an unknown one."""
    return next((profile for profile in (*PROFILES, LOCAL) if profile.name == name), PLAIN)


def profile_of(name: str) -> ProviderProfile:
    """Return the profile for `provider: NAME`, which may be an alias. Raises `KeyError` that suggests a known name."""
    wanted = name.strip().lower()
    named = profile_named(_ALIASES.get(wanted, wanted))
    if named is PLAIN or named is LOCAL:
        known = [profile.name for profile in PROFILES]
        raise KeyError(did_you_mean(wanted, [*known, *_ALIASES], f"known providers: {', '.join(known)}."))
    return named
