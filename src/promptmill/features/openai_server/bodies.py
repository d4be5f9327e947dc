"""Converts bodies of OpenAI's API to requests, and outcomes to bodies of replies. Pure functions, used for batches too.

An unsupported field that would change the answer raises an `ApiError` 400 with `param`. Null counts as an absent field.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import orjson
from pybase64 import b64encode
from pydantic import ValidationError

from promptmill.answers.response_format import asking_for
from promptmill.backends.protocol import Completion
from promptmill.backends.vectors import in_payload, numbers_of
from promptmill.config.explain import explain
from promptmill.core.errors import PromptmillError
from promptmill.core.request import (
    BESIDE,
    PASSED_ON,
    PROTECTING_NAMES,
    Conversation,
    Request,
    Sampling,
    conversation_from_messages,
)
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape
from promptmill.features.openai_server import response_bodies
from promptmill.features.openai_server.api_errors import IN_RESPONSES, ApiError, error_of, unsupported, wrong_type
from promptmill.features.openai_server.choices import NOTED, choices_of, note_on, probabilities_of, usage_of
from promptmill.features.openai_server.response_bodies import GUIDED

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
_OF_NO_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "service_tier", "verbosity", "prediction"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "stream_options"),
        "client_metadata",  # from Codex
        *("priority", "request_id", "cache_salt", "guided_decoding_backend"),  # fields of vLLM's clients
    }
)
"""Fields that never change the answer, at every path."""
_READ_ELSEWHERE = frozenset({"model", "messages", "stream"})
_PASSED_ON = BESIDE | PASSED_ON
_DEFAULTS: dict[str, Any] = {
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "chat_template_kwargs": {},
    "functions": [],
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    # vLLM's own fields, with the values that change nothing: a file for `vllm run-batch` has all of them
    **dict.fromkeys(("add_generation_prompt", "include_reasoning", "skip_special_tokens"), True),
    "spaces_between_special_tokens": True,
    **dict.fromkeys(("add_special_tokens", "continue_final_message", "echo", "ignore_eos"), False),
    **dict.fromkeys(("include_stop_str_in_output", "return_token_offsets", "use_beam_search"), False),
    "bad_words": [],
    "stop_token_ids": [],
    **dict.fromkeys(("min_tokens", "routed_experts_prompt_start"), 0),
    "length_penalty": 1.0,
    "mm_payload": "tensors",
    # Fields of other servers and their clients, with the values that change nothing.
    **dict.fromkeys(("best_of", "num_beams", "typical_p", "tfs_z"), 1),
    **dict.fromkeys(("mirostat", "top_a", "xtc_probability", "dry_multiplier"), 0),
    **dict.fromkeys(("early_stopping", "safe_prompt", "return_token_ids", "return_tokens_as_token_ids"), False),
    **{name: [] for name in ("models", "plugins", "transforms", "documents")},
    "suffix": "",
}
"""Field values that are equivalent to an absent field."""
_EMBEDDING_DEFAULTS = {"embed_dtype": "float32", "endianness": "native", "add_special_tokens": True, "stream": False}
_TOKENS = (
    "`input` holds token ids, which another model would read as other words. Send texts: LangChain's OpenAIEmbeddings "
    "does so with `check_embedding_ctx_length=False`."
)


def request_of(path: str, body: JsonObject) -> Request:
    """Return the request for a POST of `body` to `path`, without the settings of the model. Raises `ApiError`.

    >>> body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    >>> request_of("/v1/chat/completions", body).sampling.given()
    {'max_tokens': 9}
    """
    left_out = _OF_NO_EFFECT | NOTED
    body = {name: value for name, value in body.items() if value is not None and name not in left_out}
    if path == EMBEDDINGS:
        return _embeddings_request(body)
    if path == RESPONSES:
        body = response_bodies.chat_body(body)
    known = ((name, value) for name, value in body.items() if name not in _READ_ELSEWHERE)
    given = _with_structure({name: value for name, value in known if value != _DEFAULTS.get(name)})
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if given.get("tool_choice") == "none" and "tools" not in given:
        del given["tool_choice"]  # removed, because endpoints refuse it without tools
    if given.get("function_call") in ("none", "auto"):
        del given["function_call"]  # without `functions`, which are refused, it changes nothing
    match given.get("chat_template_kwargs"):
        case {"enable_thinking": bool(thinks), **rest} if not rest:  # the form of vLLM and SGLang
            del given["chat_template_kwargs"]
            given.setdefault("enable_thinking", thinks)
    if isinstance(given.get("reasoning"), dict):
        given |= _thinking(given.pop("reasoning"))
    extra = {name: given.pop(name) for name in _PASSED_ON & given.keys()}
    if unknown := given.keys() - Sampling.model_fields.keys():
        raise unsupported(min(unknown), known=Sampling.model_fields)
    sampling = _sampling_of(given, body, path)
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise wrong_type("messages", messages, "a list of messages")
    try:
        return Request(0, conversation_from_messages(messages, "messages"), sampling, extra)
    except PromptmillError as error:
        raise error_of(error, path) from None


def _sampling_of(given: JsonObject, body: JsonObject, path: str) -> Sampling:
    """Return the parameters in a body. Raises `ApiError` with the name that the client used."""
    try:
        return Sampling.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else None
        code, said = _code_of(first["type"], name), explain(error, Sampling)
        names = IN_RESPONSES if path == RESPONSES else {"max_tokens": "max_completion_tokens"}
        if name in names and (path == RESPONSES or names[name] in body):
            name, said = names[name], said.replace(name, names[name], 1)
        raise ApiError(400, said, name, code) from None


def _thinking(reasoning: JsonObject) -> JsonDict:
    """Convert OpenRouter's object `reasoning` to the sampling parameters of the same meaning. Raises `ApiError`."""
    names = {"effort": "reasoning_effort", "enabled": "enable_thinking"}
    known = names.keys() | {"exclude", "summary"}  # in any case, the reply has the reasoning next to the answer
    if unknown := {name for name, value in reasoning.items() if value is not None} - known:
        raise unsupported(f"reasoning.{min(unknown)}")
    return {names[name]: value for name, value in reasoning.items() if name in names and value is not None}


def _code_of(problem: str, name: str | None) -> str:
    """Return OpenAI's code for a problem with a parameter. `problem`: the type of pydantic's error.

    >>> _code_of("less_than_equal", "top_p"), _code_of("int_parsing", "seed")
    ('decimal_above_max_value', 'invalid_type')
    """
    number = "integer" if name in {"max_tokens", "n", "seed", "top_k"} else "decimal"
    if problem.startswith("less_than"):
        return f"{number}_above_max_value"
    if problem.startswith("greater_than"):
        return f"{number}_below_min_value"
    return "invalid_type" if problem.endswith(("_type", "_parsing", "_from_float", "number")) else "invalid_value"


def _with_structure(given: JsonDict) -> JsonDict:
    """Convert vLLM's structured outputs, including their older names, to promptmill's fields of the same meaning.

    Raises `ApiError`.
    """
    older = {new: given.pop(old) for old, new in GUIDED.items() if old in given}
    for name in PASSED_ON & given.keys():
        if not isinstance(given[name], dict):
            raise ApiError(400, f"`{name}` is {shape(given[name])}; send an object.", name)
    structure = given.pop("structured_outputs", {})
    structure = {name: value for name, value in (structure | older).items() if value not in (None, False)}
    found: JsonDict = {"structured_outputs": structure} if structure else {}
    match structure:
        case {"choice": choices} if len(structure) == 1:
            found = {"choices": choices}
        case {"json": schema} if len(structure) == 1:
            found = {"response_format": asking_for(_schema(schema))}
        case {"json_object": _} if len(structure) == 1:
            found = {"response_format": {"type": "json_object"}}
    forms = [name for name in ("response_format", "choices", "structured_outputs") if name in given or name in found]
    if found and len(forms) > 1:
        raise ApiError(400, f"The request has several forms of its answer ({', '.join(forms)}); send one.", forms[-1])
    return given | found


def _schema(given: Any) -> JsonDict:
    """Return a JSON Schema; vLLM also accepts it as a text. Raises `ApiError`."""
    try:
        schema = orjson.loads(given) if isinstance(given, str) else given
    except orjson.JSONDecodeError:
        schema = given
    if not isinstance(schema, dict):
        raise ApiError(400, f"`structured_outputs.json` is {shape(schema)}; send a JSON Schema.", "structured_outputs")
    return schema


def _embeddings_request(body: JsonObject) -> Request:
    given = {name: value for name, value in body.items() if name != "model" and _EMBEDDING_DEFAULTS.get(name) != value}
    encoding = given.pop("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise ApiError(400, "`encoding_format` is `float` or `base64`.", "encoding_format")
    sampling = _sampling_of({name: given.pop(name) for name in PROTECTING_NAMES & given.keys()}, body, EMBEDDINGS)
    given = {name: value for name, value in given.items() if name not in Sampling.model_fields}  # they change no vector
    if unknown := given.keys() - {"input", "dimensions"}:
        raise unsupported(min(unknown))
    texts = given.get("input")
    for one in texts if isinstance(texts, list) else [texts]:
        if isinstance(one, int | list):
            raise ApiError(400, _TOKENS, "input", "unsupported_value")
        if not isinstance(one, str):
            raise ApiError(400, f"`input` holds {shape(one)}; send a text or a list of texts.", "input")
    return Request(0, Conversation(()), sampling, given, path="/embeddings")


def reply_body(path: str, body: JsonObject, answer: Completion, model: str) -> JsonDict:
    """Return the body of the reply to a POST of `body` to `path`. `model`: the model's name in `body`."""
    if path == EMBEDDINGS:
        return _embeddings_body(body, answer, model) | note_on(body)
    if path == RESPONSES:
        reply = response_bodies.reply_body(body, choices_of(answer)[0], usage_of(answer.usage), model)
        return reply | probabilities_of(answer)
    choices = [
        {"index": index, "message": one.message(), "finish_reason": one.finish_reason, "logprobs": one.logprobs}
        | probabilities_of(answer)
        for index, one in enumerate(choices_of(answer))
    ]
    head = {"id": f"chatcmpl-{secrets.token_hex(14)}", "object": "chat.completion", "created": int(time.time())}
    reply = {**head, "model": model, "choices": choices, "usage": usage_of(answer.usage), "system_fingerprint": None}
    return reply | note_on(body)


def _embeddings_body(body: JsonObject, answer: Completion, model: str) -> JsonDict:
    texts = body.get("input")
    count = len(texts) if isinstance(texts, list) else 1
    vectors = answer.vectors or in_payload((answer.details or {}).get("payload") or {}, count)
    if not vectors or not all(vectors):
        problem = (
            f"The reply of the endpoint does not hold one embedding for each of the {count} inputs, all of one length."
        )
        raise ApiError(502, problem, None, "bad_response")
    wanted, found = body.get("dimensions"), len(vectors[0]) // 4
    if type(wanted) is int and found != wanted:
        problem = f"The endpoint sends embeddings of {found:,} numbers, although `dimensions` is {wanted:,}."
        raise ApiError(502, problem, "dimensions", "bad_response")
    is_text = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": b64encode(one).decode() if is_text else numbers_of(one)}
        for index, one in enumerate(vectors)
    ]
    tokens = answer.usage.prompt_tokens
    return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def model_of(body: Mapping[str, Any]) -> str:
    """Return the model that `body` names, or `""`. Raises `ApiError`."""
    name = body.get("model") or ""
    if not isinstance(name, str):
        raise wrong_type("model", name, "a name from /v1/models")
    return name
