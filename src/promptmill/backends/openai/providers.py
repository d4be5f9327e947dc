"""Provider profiles: what each provider calls things and what it does not accept, as one table of data.

Sources: the providers' API references for chat completions. A host that is not listed gets everything as it was given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import SplitResult

from promptmill.backends.openai.error_body import ErrorBody
from promptmill.backends.openai.error_words import Cause
from promptmill.backends.openai.json_form import JsonForm

_VLLM_ONLY = frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs"})
_NOTHING: Mapping[str, str] = MappingProxyType({})


_NO_CAUSES: Mapping[str, Cause] = MappingProxyType({})


def _no_names() -> Mapping[str, str]:
    return _NOTHING


def _no_causes() -> Mapping[str, Cause]:
    return _NO_CAUSES


def _codes(field_name: str, **numbers: str) -> Mapping[str, Cause]:
    """Return `field=number` → cause, from the numbers of each cause in words."""
    return MappingProxyType(
        {f"{field_name}={number}": Cause[cause] for cause, listed in numbers.items() for number in listed.split()}
    )


@dataclass(frozen=True, slots=True)
class ProviderProfile:
    """One row. `hosts` match the whole host or its end after a dot; `refused` are body keys that bring a 4xx.

    `thinking` says where `enable_thinking` goes, `json_form` how JSON is asked for. `reasoning_models` names models
    that take `max_completion_tokens` and refuse `reasoning_refused`.
    """

    name: str
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    public: bool = True
    renamed: Mapping[str, str] = field(default_factory=_no_names)
    refused: frozenset[str] = frozenset()
    thinking: Literal["template", "top_level", "refused"] = "template"
    json_form: JsonForm = "schema"
    reasoning_models: re.Pattern[str] | None = None
    reasoning_refused: frozenset[str] = frozenset()
    codes: Mapping[str, Cause] = field(default_factory=_no_causes)
    """What its own error codes mean: `field=number` → cause."""
    phrases: Mapping[str, Cause] = field(default_factory=_no_causes)
    """What its own words mean, in lower case, where they differ from everybody's."""

    def cause_of(self, body: ErrorBody) -> Cause | None:
        """Return what an error body means by this provider's own codes and words; a plain one's by everybody's."""
        codes, phrases = (_ALL_CODES, _ALL_PHRASES) if self is PLAIN else (self.codes, self.phrases)
        if codes:
            for name, number in body.numbers.items():
                if found := codes.get(f"{name}={number}"):
                    return found
        return next((cause for phrase, cause in phrases.items() if phrase in body.text), None)


_OPENAI = ProviderProfile(
    "openai",
    ("api.openai.com",),
    refused=_VLLM_ONLY,
    thinking="refused",
    json_form="strict",
    reasoning_models=re.compile(r"(?:^|/)(?:o\d|gpt-[5-9](?!.*chat))"),
    reasoning_refused=frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"}),
)

_DASHSCOPE: Mapping[str, Cause] = MappingProxyType(
    {"throttling.": Cause.RATE, "allocated quota exceeded": Cause.RATE, "error-code#token-limit": Cause.RATE}
)

DIALECTS = (
    _OPENAI,
    # not public: anyone can have a host there, so no key goes to it unasked
    replace(_OPENAI, name="azure", hosts=("openai.azure.com",), public=False),
    ProviderProfile(
        "mistral",
        ("api.mistral.ai",),
        renamed=MappingProxyType({"seed": "random_seed"}),
        refused=_VLLM_ONLY,
        thinking="refused",
        codes=_codes("code", RATE="1300 3505", MODEL="1500"),
    ),
    ProviderProfile("groq", ("api.groq.com",), refused=_VLLM_ONLY, thinking="refused", json_form="object"),
    ProviderProfile("google", ("generativelanguage.googleapis.com",), refused=_VLLM_ONLY, thinking="refused"),
    ProviderProfile(
        "dashscope",
        ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
        thinking="top_level",
        json_form="object",
        # its word for tokens a minute; money is `Arrearage`
        phrases=MappingProxyType({"insufficient_quota": Cause.RATE, **_DASHSCOPE}),
    ),
    ProviderProfile(
        "siliconflow",
        ("api.siliconflow.cn", "api.siliconflow.com"),
        thinking="top_level",
        json_form="object",
        codes=_codes("code", MODEL="20012", QUOTA="30001 30003 30011", BUSY="50501 50505 50507 60000"),
    ),
    ProviderProfile(
        "glm",
        ("open.bigmodel.cn", "api.z.ai"),
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
    ),
    ProviderProfile(
        "sensenova",
        ("api.sensenova.cn",),
        codes=_codes("code", INPUT="3", KEY="7 16", MODEL="5", RATE="8", FILTER="18 19", BUSY="2 13 14"),
    ),
    ProviderProfile("anthropic", ("api.anthropic.com",), refused=_VLLM_ONLY, thinking="refused", json_form="words"),
    ProviderProfile("deepseek", ("api.deepseek.com",), refused=_VLLM_ONLY, thinking="refused", json_form="object"),
    ProviderProfile("xai", ("api.x.ai",), refused=_VLLM_ONLY, thinking="refused"),
    ProviderProfile("cerebras", ("api.cerebras.ai",), refused=_VLLM_ONLY, thinking="refused", json_form="strict"),
    ProviderProfile("openrouter", ("openrouter.ai",), refused=frozenset({"chat_template_kwargs"}), thinking="refused"),
    ProviderProfile("together", ("api.together.xyz", "api.together.ai")),
    ProviderProfile("fireworks", ("api.fireworks.ai",)),
    ProviderProfile("nvidia", ("integrate.api.nvidia.com",)),
    ProviderProfile("huggingface", ("router.huggingface.co",)),
    ProviderProfile("ollama", ports=(11434,), public=False, refused=frozenset({"repetition_penalty"})),
    ProviderProfile("lmstudio", ports=(1234,), public=False),
)
PLAIN = ProviderProfile(
    "plain", public=False
)  # vLLM, SGLang, llama.cpp and every host that is not listed: sent as given


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


# A gateway passes on what those behind it say.
_ALL_CODES = _agreed()
_ALL_PHRASES = _DASHSCOPE


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


def translate(profile: ProviderProfile, model: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `(body keys, names the endpoint cannot take)` for `given`: sampling and extra parameters together."""
    body = dict(given)
    refused: list[str] = []
    thinking = body.pop("enable_thinking", None)
    if thinking is not None:
        if profile.thinking == "template":
            body["chat_template_kwargs"] = {**(body.get("chat_template_kwargs") or {}), "enable_thinking": thinking}
        elif profile.thinking == "top_level":
            body["enable_thinking"] = thinking
        else:
            refused.append("enable_thinking")
    off = profile.refused
    if profile.reasoning_models and profile.reasoning_models.search(model):
        off |= profile.reasoning_refused
        if "max_tokens" in body:
            body.setdefault("max_completion_tokens", body.pop("max_tokens"))
    refused += [name for name in body if name in off]
    return {profile.renamed.get(name, name): value for name, value in body.items() if name not in off}, refused
