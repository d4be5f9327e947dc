"""Reads error bodies in any provider's format: the message, its words and codes, and the cause that they indicate.

`read_error` extracts message, words and codes; `CODES` and `WORDS` map them to a `Cause`. The codes and phrases in a
provider's profile take precedence. Evidence: tests/backends/openai/evidence.jsonl has each body with its source.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import orjson

from promptmill.core.bounds import LONGEST_SEARCHED, MOST_LEAVES

_MESSAGES = ("message", "msg", "detail", "error_msg", "status_msg", "errormessage", "error", "errors", "title",
             "reason", "err")  # fmt: skip
_CODES = frozenset({"code", "type", "status", "reason", "error_code", "error_type", "status_code", "statuscode",
                    "http_code", "param", "limit_source", "errorcode", "object"})  # fmt: skip
_NUMBERED = ("code", "status_code", "http_code", "status", "statusCode", "error_code")
# Fields that are skipped because they quote the request, whose prompt may contain any words.
_QUOTING = frozenset({"input", "flagged_input", "failed_generation", "ctx", "links", "url", "prompt", "messages"})
# Long quotations are skipped, too, because they are not the provider's words: pydantic, for example, quotes its input.
_QUOTED = re.compile(r"(?<!\w)(['\"`])(?:(?!\1)[^\n]){25,}\1(?!\w)")
_URL = re.compile(r"https?://\S+")
_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
# A script without an end extends to the end of the text, so that the search does not restart inside it.
_MARKUP = re.compile(r"<(?:script|style).*?(?:</(?:script|style)>|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """`shown` is for users. `text`, `words` (without URLs and quotations) and `codes` are in lower case, for searches.

    `numbers` has the numeric codes, by field name. `payload`: the parsed body; JSON inside its strings is parsed too.
    """

    shown: str
    text: str
    words: str
    codes: frozenset[str]
    numbers: Mapping[str, int]
    payload: Any

    @property
    def status(self) -> int | None:
        """The HTTP status that the body contains, or None. It may differ from the status of the response."""
        for name in _NUMBERED:
            if 400 <= (number := self.numbers.get(name, 0)) < 600:
                return number
        return None


def read_error(payload: Any) -> ErrorBody:
    """Return the contents of an error body. `payload`: the parsed body, or its text."""
    payload = _parsed(payload, [MOST_LEAVES])
    if isinstance(payload, str):
        payload = payload[:LONGEST_SEARCHED]
        page = payload.lstrip()[:1] == "<"
        title = _TITLE.search(payload)
        shown = (title[1].strip() if title else "") if page else payload
        words = _MARKUP.sub(" ", payload) if page else payload
        return ErrorBody(shown, *_searched([words]), frozenset(), {}, payload)
    leaves: list[str] = []
    codes: set[str] = set()
    numbers: dict[str, int] = {}
    for name, value in fields_of(payload):
        field = name.lower()
        if isinstance(value, str):
            leaves.append(value[:1000])  # shortened: providers state the problem first, and quotations follow
            if field in _CODES:
                codes.add(value.lower()[:100])
        if field in _CODES and not isinstance(value, bool) and name not in numbers:
            if isinstance(value, int):
                numbers[name] = value
                codes.add(str(value))
            elif isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
                numbers[name] = int(value)
    shown = _message(payload)[:LONGEST_SEARCHED] or ", ".join(sorted(codes))
    return ErrorBody(shown, *_searched(leaves), frozenset(codes), numbers, payload)


def _parsed(value: Any, left: list[int], depth: int = 0) -> Any:
    """Return `value` with JSON inside strings parsed, because gateways quote responses of other servers.

    `left`: a list with one number, which counts down the values that may still be visited.
    """
    left[0] -= 1
    if depth > 6 or left[0] < 0:
        return value
    if isinstance(value, str):
        # a longer string is shortened before it is parsed as JSON
        value = value[: 64 * 1024]
    if isinstance(value, str) and (start := value.find("{")) >= 0 and '"' in value[start : start + 20]:
        try:
            inner = orjson.loads(value[start : value.rfind("}") + 1])
        except orjson.JSONDecodeError:
            return value
        inner = _parsed(inner, left, depth + 1)
        return inner if not value[:start].strip() else {"message": value[:start].rstrip(" -:"), "inner": inner}
    if isinstance(value, dict):
        return {name: _parsed(inner, left, depth + 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [_parsed(inner, left, depth + 1) for inner in value]
    return value


def fields_of(payload: Any) -> Iterator[tuple[str, object]]:
    """Yield field names and values, outer fields first, up to a limit. Fields that quote the request are left out."""
    level: list[tuple[str, object]] = [("", payload)]
    left = MOST_LEAVES
    while level and left > 0:
        below: list[tuple[str, object]] = []
        for name, value in level:
            left -= 1
            yield name, value
            if isinstance(value, dict):
                fields = itertools.islice(value.items(), MOST_LEAVES)
                below += [(str(key), inner) for key, inner in fields if str(key).lower() not in _QUOTING]
            elif isinstance(value, list):
                below += [(name, inner) for inner in value[:50]]
        level = below


def _searched(leaves: list[str]) -> tuple[str, str]:
    """Return `text` and `words`. Links are removed from `words`, because their paths do not describe the request."""
    text = "\n".join(leaves)[:LONGEST_SEARCHED].lower()
    return text, _QUOTED.sub(" ", _URL.sub(" ", text))


def _message(value: Any) -> str:
    """Return the message of a body. It may be nested, as in FastAPI's list of errors with locations."""
    if isinstance(value, dict):
        fields = {str(name).lower(): inner for name, inner in itertools.islice(value.items(), MOST_LEAVES)}
        inner = _message(fields.get("inner"))  # read once: a second read would double the time with each level
        message = next((text for name in _MESSAGES if (text := _message(fields.get(name)))), "")
        if not message:
            nested = ("base_resp", "header", "response", "inner", "body")
            texts = (inner if name == "inner" else _message(fields.get(name)) for name in nested)
            message = next(filter(None, texts), "")
        raw = fields.get("metadata")
        more = _message(raw.get("raw")) if isinstance(raw, dict) else inner or _by_field(fields.get("errors"))
        message = f"{message}: {more}" if message and more and more != message else message or more
        place = _place(fields.get("loc"))
        return f"{place}: {message}" if place and message and place not in message else message
    if isinstance(value, list):
        return "; ".join(filter(None, map(_message, value[:20])))
    return value[:LONGEST_SEARCHED].strip() if isinstance(value, str) else ""


def _by_field(errors: Any) -> str:
    """Return the messages of .NET's validation errors, each with its field."""
    if not isinstance(errors, dict):
        return ""
    lists = [(name, value) for name, value in itertools.islice(errors.items(), 20) if isinstance(value, list)]
    return "; ".join(f"{str(name)[:100]}: {text}" for name, value in lists if (text := _message(value)))


def _place(location: Any) -> str:
    """Return the field that a location of FastAPI names: `["body", "messages", 0, "role"]` is `messages.0.role`."""
    parts = location if isinstance(location, list) else ()
    return ".".join(str(part)[:100] for part in parts[:10] if isinstance(part, str | int) and part != "body")


class Cause(Enum):
    """The cause of a refusal."""

    FILTER = auto()
    """The content of the request or the answer was filtered."""
    CONTEXT = auto()
    """The request is longer than the model's context."""
    CUT = auto()
    """The answer was cut before its first word."""
    TOO_LARGE = auto()
    """The request is larger than the endpoint ever accepts."""
    SAMPLE = auto()
    """The model's answer did not have the requested form, but another sample may have it."""
    INPUT = auto()
    """Another mistake in the request."""
    KEY = auto()
    """The key is refused, or lacks a permission."""
    MODEL = auto()
    """The model, deployment or path does not exist."""
    QUOTA = auto()
    """The money or credits of the account are used up."""
    DAY = auto()
    """A limit for a day or longer is used up."""
    RATE = auto()
    """A limit that resets within minutes is used up."""
    BUSY = auto()
    """The endpoint is overloaded or broken."""


def _set_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


CODES: dict[Cause, frozenset[str]] = {
    Cause.FILTER: _set_of(
        "content_filter content_filtered content_policy_violation responsibleaipolicyviolation data_inspection_failed "
        "datainspectionfailed sensitivecontentdetected inputtextsensitivecontentdetected "
        "outputtextsensitivecontentdetected inputimagesensitivecontentdetected censorship_blocked moderation_error "
        "moderation_blocked content_moderation invalid_prompt content_violation safety_error"
    ),
    Cause.CONTEXT: _set_of(
        "context_length_exceeded context_window_exceeded exceed_context_size_error string_above_max_length "
        "model_max_prompt_tokens_exceeded oversizetokens context_too_long prompt_too_long max_tokens_exceeded"
    ),
    Cause.SAMPLE: _set_of("json_validate_failed tool_use_failed output_parse_failed malformed_function_call"),
    Cause.TOO_LARGE: _set_of("request_too_large tokens_limit_reached payload_too_large"),
    Cause.KEY: _set_of(
        "invalid_api_key wrong_api_key api_key_invalid invalidapikey missing_api_key authentication_error "
        "authenticationerror invalid_authentication_error authorized_error token_not_found_in_db invalid_iam_token "
        "account_deactivated organization_restricted unsupported_country_region_territory unauthenticated "
        "unauthorized"
    ),
    Cause.MODEL: _set_of(
        "model_not_found deploymentnotfound invalid_model model_decommissioned model_not_available modelnotopen "
        "model_not_supported invalidendpointormodel.notfound invalidendpointormodel.modelidaccessdisabled "
        "resource_not_found_error resource_does_not_exist not_found_error notfounderror model_deprecated"
    ),
    Cause.QUOTA: _set_of(
        "billing_not_active billing_hard_limit_reached insufficient_balance insufficient_balance_error "
        "insufficient_funds not_enough_balance insufficient_user_quota insufficient_credits budget_exceeded arrearage "
        "accountoverdueerror account_overdue credit_limit payment_required payment_required_error "
        "exceeded_current_quota_error allocationquota.freetieronly setlimitexceeded balance_depleted "
        "pre_consume_token_quota_failed token_quota_reached"
    ),
}

WORDS: dict[Cause, re.Pattern[str]] = {
    Cause.SAMPLE: re.compile(
        r"failed to (?:generate|validate|parse) (?:valid |the generated |generated )?json|failed to call a function"
        r"|model (?:generated|produced|output|returned) (?:an? )?(?:invalid|malformed)|tool call validation failed"
    ),
    Cause.FILTER: re.compile(
        r"content (?:management |filter(?:ing)? |usage |safety )?polic|content[_ -]?filter|content violates"
        r"|violat\w+ (?:our |openai'?s |the |anthropic'?s )?(?:usage|content|safety)|usage polic(?:y|ies)"
        r"|safety (?:system|filter|polic)"
        r"|\bflagged\b|(?:requires|failed|blocked by|rejected by) moderation|inappropriate content"
        r"|sensitive (?:content|information|words?)|new_sensitive|content exists risk|high risk"
        r"|prohibited[_ ](?:content|use)"
        r"|(?:prompt|request|response) (?:was |is )?blocked|blocked by (?:the |our )?(?:safety|content|guardrail)"
        r"|(?:input|output|content|outputted) (?:is|was) blocked"
        r"|unsafe content|raiblocked|jailbreak|敏感|违规|审核不通过|内容审核|不安全|不合规|内容安全|风险内容"
    ),
    Cause.CONTEXT: re.compile(
        r"context[_ -]?(?:length|window|size|limit)"
        r"|must have less than \d+ tokens|input token count|max(?:_new|_completion)?_tokens must be at least \d+, got -"
        r"|maximum (?:context|prompt length|model length|input length|allowed length)"
        r"|(?:prompt|input|message|conversation) (?:is|are) too long|prompt too long|too long for"
        r"|(?:prompt|input) (?:length|tokens)\b.{0,80}exceed"
        r"|input (?:length|tokens?|token count).{0,60}exceed"
        r"|exceed\w*.{0,40}(?:context|maximum number of (?:input )?tokens|model token limit)"
        r"|exceed\w*.{0,40}max(?:imum)? (?:message |model |input |prompt )?(?:tokens?|len)"
        r"|prompt token count|too many (?:input |prompt )?tokens|token limit exceeded"
        r"|longer than the (?:maximum )?(?:model|context)"
        r"|max_seq_len|max_model_len|reduce the length of the (?:messages|prompt|input)|`inputs` tokens"
        r"|range of input length"
        r"|string too long|tokens to keep from the initial prompt|when context the overflows"
        r"|too large for model with \d+"
        r"|total tokens exceed|超长|上下文|超出.{0,12}长度|长度.{0,6}超|超过.{0,16}(?:长度|token)"
    ),
    Cause.CUT: re.compile(r"could not finish the message because max_tokens"),  # OpenAI's words
    Cause.TOO_LARGE: re.compile(
        r"request (?:is )?too large|(?:body|payload|entity) (?:is )?too large|exceeds the maximum (?:request )?size"
        r"|payload size exceeds"
        r"|must be reduced in order|reduce your message size|image (?:size )?exceeds|image (?:is )?too large"
        r"|too large to process"
        r"|dimensions exceed|usage is required for long context"
    ),
    Cause.QUOTA: re.compile(
        r"insufficient[_ ](?:account[_ ])?(?:balance|funds?|credits?|usd)"
        r"|balance is (?:insufficient|too low|not enough)"
        r"|not[_ ]enough[_ ](?:balance|credits?|quota|funds)"
        r"|(?:out of|run out of|no|any) (?:more |usable |remaining )?(?:credits|funds)\b|credit balance"
        r"|credits? (?:have )?(?:been )?(?:expired|exhausted|limit exceeded)|available credits|included credits"
        r"|requires? more credits"
        r"|billing[_ ](?:hard|not active|limit|issue)|check your billing|payment (?:required|method)|overdue|arrear"
        r"|past invoices"
        r"|spend(?:ing)? limit|budget (?:has been |was )?exceeded|exceeded.{0,12}budget|please (?:top up|recharge)"
        r"|recharge your account"
        r"|specified api usage limits|call volume quota|free tier.{0,40}exhausted"
        r"|quota (?:has been )?(?:used up|exhausted)|hard limit|key limit exceeded"
        r"|inference limit|token quota|free allocation|account balance|good standing"
        r"|欠费|余额|额度不足|额度已|额度用|充值|今日.{0,8}限额"
    ),
    Cause.KEY: re.compile(
        r"(?:invalid|incorrect|wrong|expired|missing|bad|no) (?:x-)?"
        r"(?:api[ _-]?(?:key|token|secret)|credentials|auth credentials|x-api-key)"
        r"|(?:didn't|did not) provide an api key"
        r"|api[ _-]?key.{0,50}(?:not valid|invalid|expired|incorrect|revoked|leaked|disabled|required|missing)"
        r"|invalid (?:access |proxy server )?token|token (?:is )?(?:invalid|expired)"
        r"|invalid (?:iam )?authentication|authentication (?:fail|error)"
        r"|unauthori[sz]ed|not authenticated|login fail"
        r"|(?:account|key|user).{0,60}(?:deactivated|suspended|disabled|banned|terminated)"
        r"|organization has been (?:disabled|restricted)|location is not supported|country, region"
        r"|access was terminated|member of an organization"
        r"|无效的令牌|令牌无效|令牌已|身份验证|鉴权|密钥|appidnoauth|授权错误|认证失败"
    ),
    Cause.MODEL: re.compile(
        r"model\b.{0,90}(?:(?:does not|doesn't|not) exist|not found|decommissioned|deprecated and|has been retired"
        r"|no longer (?:available|supported))"
        r"|model.{0,60}(?:is )?not supported by any"
        r"|(?:unknown|invalid|no such|not found the|unable to access|unsupported) model\b|not a valid model"
        r"|invalid model name|no models? loaded|deployment.{0,60}does not exist|unexpected endpoint|invalid url"
        r"|not a chat model"
        r"|模型不存在|模型.{0,10}不存在|page not found|endpoint does not exist"
    ),
    Cause.RATE: re.compile(
        r"rate[ _-]?limit|too many (?:concurrent )?requests|requests? (?:per|/) ?(?:min|sec)|throttl|\bqps\b"
        r"|concurren\w* (?:limit|exceeded|requests)"
        r"|request limit|限流|频率|并发|请求过多|\b[tr]pm\b"
    ),
    Cause.BUSY: re.compile(
        r"overload|server busy|too busy|loading model|high (?:traffic|demand)"
        r"|is (?:currently |still )?loading|model (?:is )?unloaded"
        r"|(?:has|have) crashed"
        r"|temporarily unavailable|capacity|internal (?:server )?error|(?:try|retry) (?:again )?later|timed? ?out"
        r"|稍后|繁忙|unknown error"
    ),
}

# Sentences that refer to money at one provider, and to a limit per minute at another.
SOFT_QUOTA = re.compile(r"exceeded your current quota|insufficient[_ ]quota|quota exceeded|plan and billing")
# Words for a limit of requests in flight, which some gateways call a quota; `MONEY`: words that always refer to money.
IN_FLIGHT = re.compile(
    r"concurren|in[ -]flight|(?:parallel|simultaneous|active|pending|outstanding) requests|at the same time"
    r"|limit of .{0,40}requests|并发"
)
MONEY = re.compile(r"balance|credits?\b|funds|payment|top up|recharge|欠费|余额|充值")
PER_MINUTE = re.compile(r"per[ _-]?(?:min|sec)|\b[tr]p[ms]\b|/ ?min|perminute|每分钟|每秒")
PER_DAY = re.compile(
    r"per[ _-]?(?:day|week|month)|\b[tr]pd\b|/ ?(?:day|week|month)\b|\b(?:daily|weekly|monthly)\b|bymodelbyday|今日"
    r"|每日|当日|每天|每月"
)
NO_QUOTA_AT_ALL = re.compile(r"\blimit: 0\b")
NEVER_ENOUGH = re.compile(r"limit:? (\d+)(?!.{0,40}limit).{0,80}?requested:? ~?(\d+)")
# Even with a 5xx status, these words refer to the request. With such a status, all other words refer to the server.
CONTEXT_FOR_SURE = re.compile(
    r"exceeds? (?:the )?(?:available )?context|(?:prompt|input)\b.{0,30} is too long"
    r"|maximum context length is \d|context_length_exceeded"
    r"|prompt too long|(?:prompt|input) length \(?\d+\)? exceeds"
)
FEATURE = re.compile(r"support (?:image|tool|vision|audio|file|the requested|structured|response_format)")
