"""Providers and servers, one row each: `provider: NAME` takes one, and an endpoint's host or port finds its own.

Sources: the providers' API references for chat completions; `source` names the page that address and key were read on.
A host that is not listed gets everything as it was given. No row has a default model: those outlive no year.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from urllib.parse import SplitResult

from promptmill.backends.openai.error_words import Cause
from promptmill.backends.openai.provider_profile import ProviderProfile

_VLLM_ONLY = frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs"})


def _codes(field_name: str, **numbers: str) -> Mapping[str, Cause]:
    """Return `field=number` → cause, from the numbers of each cause in words."""
    return MappingProxyType(
        {f"{field_name}={number}": Cause[cause] for cause, listed in numbers.items() for number in listed.split()}
    )


_OPENAI = ProviderProfile(
    "openai",
    ("api.openai.com",),
    refused=_VLLM_ONLY,
    thinking="refused",
    json_form="strict",
    reasoning_models=re.compile(r"(?:^|/)(?:o\d|gpt-[5-9](?!.*chat))"),
    reasoning_refused=frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"}),
    base_url="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    source="platform.openai.com/docs/api-reference",
)

_DASHSCOPE: Mapping[str, Cause] = MappingProxyType(
    {"throttling.": Cause.RATE, "allocated quota exceeded": Cause.RATE, "error-code#token-limit": Cause.RATE}
)

DIALECTS = (
    _OPENAI,
    # not public: anyone can have a host there, so no key goes to it unasked
    replace(
        _OPENAI,
        name="azure",
        hosts=("openai.azure.com",),
        public=False,
        base_url="",
        source="learn.microsoft.com/azure/ai-services/openai",
        key_env="AZURE_OPENAI_API_KEY",
    ),
    ProviderProfile(
        "mistral",
        ("api.mistral.ai",),
        renamed=MappingProxyType({"seed": "random_seed"}),
        refused=_VLLM_ONLY,
        thinking="refused",
        codes=_codes("code", RATE="1300 3505", MODEL="1500"),
        base_url="https://api.mistral.ai/v1",
        key_env="MISTRAL_API_KEY",
        source="docs.mistral.ai/api",
    ),
    ProviderProfile(
        "groq",
        ("api.groq.com",),
        refused=_VLLM_ONLY,
        thinking="refused",
        json_form="object",
        base_url="https://api.groq.com/openai/v1",
        key_env="GROQ_API_KEY",
        source="console.groq.com/docs/openai",
    ),
    ProviderProfile(
        "google",
        ("generativelanguage.googleapis.com",),
        refused=_VLLM_ONLY,
        thinking="refused",
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        key_env="GEMINI_API_KEY",
        source="ai.google.dev/gemini-api/docs/openai",
    ),
    ProviderProfile(
        "dashscope",
        ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
        thinking="top_level",
        json_form="object",
        # its word for tokens a minute; money is `Arrearage`
        phrases=MappingProxyType({"insufficient_quota": Cause.RATE, **_DASHSCOPE}),
        base_url="https://dashscope.aliyuncs.com/compatible-mode/v1",
        key_env="DASHSCOPE_API_KEY",
        source="help.aliyun.com/zh/model-studio",
    ),
    ProviderProfile(
        "siliconflow",
        ("api.siliconflow.cn", "api.siliconflow.com"),
        thinking="top_level",
        json_form="object",
        codes=_codes("code", MODEL="20012", QUOTA="30001 30003 30011", BUSY="50501 50505 50507 60000"),
        base_url="https://api.siliconflow.cn/v1",
        key_env="SILICONFLOW_API_KEY",
        source="docs.siliconflow.cn",
    ),
    ProviderProfile(
        "glm",
        ("open.bigmodel.cn", "api.z.ai"),
        thinking="type_object",
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
        source="docs.bigmodel.cn",
    ),
    ProviderProfile(
        "minimax",
        ("api.minimax.io", "api.minimaxi.com", "api.minimax.chat"),
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
        source="platform.minimax.io/docs",
    ),
    ProviderProfile(
        "qianfan",
        ("qianfan.baidubce.com", "aip.baidubce.com"),
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
        source="cloud.baidu.com/doc/qianfan-api",
    ),
    ProviderProfile(
        "spark",
        ("spark-api-open.xf-yun.com",),
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
        source="www.xfyun.cn/doc/spark",
    ),
    ProviderProfile(
        "sensenova",
        ("api.sensenova.cn",),
        codes=_codes("code", INPUT="3", KEY="7 16", MODEL="5", RATE="8", FILTER="18 19", BUSY="2 13 14"),
        base_url="https://api.sensenova.cn/compatible-mode/v1",
        key_env="SENSENOVA_API_KEY",
        source="www.sensecore.cn/help/docs",
    ),
    ProviderProfile(
        "anthropic",
        ("api.anthropic.com",),
        refused=_VLLM_ONLY,
        thinking="refused",
        json_form="words",
        base_url="https://api.anthropic.com/v1",
        key_env="ANTHROPIC_API_KEY",
        source="docs.anthropic.com/en/api/openai-sdk",
    ),
    ProviderProfile(
        "deepseek",
        ("api.deepseek.com",),
        refused=_VLLM_ONLY,
        thinking="type_object",
        json_form="object",
        base_url="https://api.deepseek.com/v1",
        key_env="DEEPSEEK_API_KEY",
        source="api-docs.deepseek.com",
    ),
    ProviderProfile(
        "xai",
        ("api.x.ai",),
        refused=_VLLM_ONLY,
        thinking="refused",
        base_url="https://api.x.ai/v1",
        key_env="XAI_API_KEY",
        source="docs.x.ai",
    ),
    ProviderProfile(
        "cerebras",
        ("api.cerebras.ai",),
        refused=_VLLM_ONLY,
        thinking="refused",
        json_form="strict",
        base_url="https://api.cerebras.ai/v1",
        key_env="CEREBRAS_API_KEY",
        source="inference-docs.cerebras.ai",
    ),
    ProviderProfile(
        "openrouter",
        ("openrouter.ai",),
        refused=frozenset({"chat_template_kwargs"}),
        thinking="refused",
        base_url="https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        source="openrouter.ai/docs",
    ),
    ProviderProfile(
        "together",
        ("api.together.xyz", "api.together.ai"),
        base_url="https://api.together.xyz/v1",
        key_env="TOGETHER_API_KEY",
        source="docs.together.ai",
    ),
    ProviderProfile(
        "fireworks",
        ("api.fireworks.ai",),
        base_url="https://api.fireworks.ai/inference/v1",
        key_env="FIREWORKS_API_KEY",
        source="docs.fireworks.ai",
    ),
    ProviderProfile(
        "nvidia",
        ("integrate.api.nvidia.com",),
        base_url="https://integrate.api.nvidia.com/v1",
        key_env="NVIDIA_API_KEY",
        source="docs.api.nvidia.com",
    ),
    ProviderProfile(
        "huggingface",
        ("router.huggingface.co",),
        base_url="https://router.huggingface.co/v1",
        key_env="HF_TOKEN",
        source="huggingface.co/docs/inference-providers",
    ),
    ProviderProfile(
        "ollama",
        ports=(11434,),
        public=False,
        refused=frozenset({"repetition_penalty"}),
        base_url="http://127.0.0.1:11434/v1",
        key_env="",
        source="ollama.com/blog/openai-compatibility",
    ),
    ProviderProfile(
        "lmstudio",
        ports=(1234,),
        public=False,
        base_url="http://127.0.0.1:1234/v1",
        key_env="LM_STUDIO_API_KEY",
        source="lmstudio.ai/docs",
    ),
    ProviderProfile(
        "cohere",
        ("api.cohere.ai", "api.cohere.com"),
        base_url="https://api.cohere.ai/compatibility/v1",
        key_env="COHERE_API_KEY",
        source="docs.cohere.com/docs/compatibility-api",
        refused=_VLLM_ONLY,
        thinking="refused",
    ),
    ProviderProfile(
        "deepinfra",
        ("api.deepinfra.com",),
        base_url="https://api.deepinfra.com/v1/openai",
        key_env="DEEPINFRA_API_KEY",
        source="deepinfra.com/docs/openai_api",
    ),
    ProviderProfile(
        "sambanova",
        ("api.sambanova.ai",),
        base_url="https://api.sambanova.ai/v1",
        key_env="SAMBANOVA_API_KEY",
        source="docs.sambanova.ai",
    ),
    ProviderProfile(
        "perplexity",
        ("api.perplexity.ai",),
        base_url="https://api.perplexity.ai/chat/completions",
        key_env="PERPLEXITY_API_KEY",
        source="docs.perplexity.ai",
        thinking="refused",
    ),
    ProviderProfile(
        "github",
        ("models.github.ai",),
        base_url="https://models.github.ai/inference",
        key_env="GITHUB_TOKEN",
        source="docs.github.com/en/github-models",
        refused=_VLLM_ONLY,
        thinking="refused",
    ),
    ProviderProfile(
        "kimi",
        ("api.moonshot.cn", "api.moonshot.ai"),
        base_url="https://api.moonshot.cn/v1",
        key_env="MOONSHOT_API_KEY",
        source="platform.moonshot.cn/docs",
        refused=_VLLM_ONLY,
        thinking="type_object",
        json_form="object",
    ),
    ProviderProfile(
        "doubao",
        ("ark.cn-beijing.volces.com",),
        base_url="https://ark.cn-beijing.volces.com/api/v3",
        key_env="ARK_API_KEY",
        source="www.volcengine.com/docs/82379",
        refused=_VLLM_ONLY,
        thinking="type_object",
    ),
    ProviderProfile(
        "ppio",
        ("api.ppinfra.com", "api.ppio.com"),
        base_url="https://api.ppinfra.com/v3/openai",
        key_env="PPIO_API_KEY",
        source="ppio.com/docs",
    ),
    ProviderProfile(
        "aiping",
        ("aiping.cn",),
        base_url="https://aiping.cn/api/v1",
        key_env="AIPING_API_KEY",
        source="aiping.cn/docs",
        thinking="top_level",
    ),
    ProviderProfile(
        "hunyuan",
        ("api.hunyuan.cloud.tencent.com",),
        base_url="https://api.hunyuan.cloud.tencent.com/v1",
        key_env="HUNYUAN_API_KEY",
        source="cloud.tencent.com/document/product/1729",
        thinking="top_level",
    ),
    ProviderProfile(
        "stepfun",
        ("api.stepfun.com",),
        base_url="https://api.stepfun.com/v1",
        key_env="STEPFUN_API_KEY",
        source="platform.stepfun.com/docs",
        thinking="refused",
    ),
    ProviderProfile(
        "novita",
        ("api.novita.ai",),
        base_url="https://api.novita.ai/v3/openai",
        key_env="NOVITA_API_KEY",
        source="novita.ai/docs",
    ),
    ProviderProfile(
        "nebius",
        ("api.studio.nebius.com", "api.studio.nebius.ai"),
        base_url="https://api.studio.nebius.com/v1",
        key_env="NEBIUS_API_KEY",
        source="docs.nebius.com/studio",
    ),
    # servers of one's own: their address is told by --port at their start, these are the usual ones
    ProviderProfile(
        "vllm", public=False, base_url="http://127.0.0.1:8000/v1", key_env="VLLM_API_KEY", source="docs.vllm.ai"
    ),
    ProviderProfile(
        "sglang", public=False, base_url="http://127.0.0.1:30000/v1", key_env="SGLANG_API_KEY", source="docs.sglang.ai"
    ),
    ProviderProfile(
        "llama.cpp", public=False, base_url="http://127.0.0.1:8080/v1", source="github.com/ggml-org/llama.cpp"
    ),
    ProviderProfile(
        "tgi", public=False, base_url="http://127.0.0.1:3000/v1", source="huggingface.co/docs/text-generation-inference"
    ),
)

_TELLING = len("code=12345")


def _agreed() -> Mapping[str, Cause]:
    """Return the codes that no two rows read differently and that are too long to be anything else."""
    found: dict[str, Cause] = {}
    differing: set[str] = set()
    for profile in DIALECTS:
        for code, cause in profile.codes.items():
            if found.setdefault(code, cause) is not cause or len(code) < _TELLING:
                differing.add(code)
    return MappingProxyType({code: cause for code, cause in found.items() if code not in differing})


# Every host that is not listed: sent as given. A gateway passes on what those behind it say.
PLAIN = ProviderProfile("plain", public=False, codes=_agreed(), phrases=_DASHSCOPE)
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"qwen": "dashscope", "gemini": "google", "moonshot": "kimi", "zhipu": "glm", "zai": "glm", "claude": "anthropic"}
)


def dialect_of(url: SplitResult) -> ProviderProfile:
    """Return the dialect of the endpoint at `url`, by its host or well-known local port."""
    host, port = url.hostname or "", url.port
    for profile in DIALECTS:
        if any(host == known or host.endswith("." + known) for known in profile.hosts):
            return profile
        if port in profile.ports:
            return profile
    return PLAIN


def dialect_named(name: str) -> ProviderProfile:
    """Return the dialect called `name`."""
    return next((profile for profile in DIALECTS if profile.name == name), PLAIN)


def preset(name: str) -> ProviderProfile:
    """Return the row that `provider: NAME` means. Raises `KeyError` with what to write instead."""
    wanted = name.strip().lower()
    found = dialect_named(_ALIASES.get(wanted, wanted))
    if found is PLAIN:
        known = [profile.name for profile in DIALECTS]
        near = difflib.get_close_matches(wanted, [*known, *_ALIASES], n=1, cutoff=0.5)
        raise KeyError(f"did you mean {near[0]}?" if near else f"known providers: {', '.join(known)}.")
    return found


def listed(environ: Mapping[str, str] = os.environ) -> list[tuple[str, str, str, bool]]:
    """Return `(name, base URL, variable of the key, whether it is set)` of each row."""
    return [
        (profile.name, profile.base_url, profile.key_env, bool(environ.get(profile.key_env, "").strip()))
        for profile in DIALECTS
    ]
