"""Errors. Each has a stable code and a hint, and states whether a retry may help."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from promptmill.core.secret_text import KEY, KEY_RUN


class Code(StrEnum):
    """Stable lower-case codes for programs. `docs/errors.md` explains each."""

    # the caller's input
    INVALID_INPUT = "invalid_input"
    EMPTY_PROMPT = "empty_prompt"
    INVALID_CONFIG = "invalid_config"
    INVALID_IMAGE = "invalid_image"
    UNSUPPORTED = "unsupported"
    # an endpoint's answer
    UNAUTHORIZED = "unauthorized"
    INSUFFICIENT_QUOTA = "insufficient_quota"
    BUDGET = "budget"
    NOT_FOUND = "not_found"
    BAD_REQUEST = "bad_request"
    CONTEXT_LENGTH = "context_length"
    REQUEST_TOO_LARGE = "request_too_large"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    BAD_RESPONSE = "bad_response"
    EMPTY_ANSWER = "empty_answer"
    OPEN_REASONING = "open_reasoning"
    TRUNCATED = "truncated"
    CONTENT_FILTER = "content_filter"
    INVALID_ANSWER = "invalid_answer"
    # the connection
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    CONNECTION_LOST = "connection_lost"
    TLS = "tls"
    # this machine
    NAME_RESOLUTION = "name_resolution"
    NO_FILE_DESCRIPTORS = "no_file_descriptors"
    STORAGE = "storage"
    # the life of a call
    ITEM_TIMEOUT = "item_timeout"
    DEADLINE = "deadline"
    BATCHED = "batched"
    DEFERRED = "deferred"
    OMITTED = "omitted"
    REPLACED = "replaced"
    SHUTDOWN = "shutdown"
    # engines, each in its own process
    MISSING_DEPENDENCY = "missing_dependency"
    ENGINE_LOAD_FAILED = "engine_load_failed"
    ENGINE_DIED = "engine_died"
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL = "internal"


READS_IMAGES = "Choose a model that reads images, or leave the images out."
"""The hint for images that a model does not support. Correcting the images would not help."""


class Named(NamedTuple):
    """The name of an argument, or the path of a configuration key, in the text of an error.

    `text`: the text around the name, such as "; {} replaces it". `value`: a value that follows the name, as in `again:
    "all"`. `otherwise`: the text in place of `text` on a surface that lacks the name.
    """

    field: str
    value: object = ""
    text: str = "{}"
    otherwise: str = ""


Words: TypeAlias = str | Sequence[str | Named]


class _Trait(NamedTuple):
    retryable: bool
    hint: Words


def _more_room(tokens: int) -> Words:
    """Return the remedy for answers that were cut off."""
    off = Named("sampling_params.enable_thinking", value=False)
    more = "Allow more by ", Named("max_tokens", tokens), ", or switch thinking off by ", off, ". With that, "
    return *more, Named("again", "failed"), " sends the failed rows of a job again."


_TRAITS: dict[Code, _Trait] = {
    Code.INVALID_INPUT: _Trait(False, "Correct the named argument and call again."),
    Code.EMPTY_PROMPT: _Trait(False, "Write a prompt, or leave such rows out."),
    Code.INVALID_CONFIG: _Trait(False, "Correct the named key."),
    Code.INVALID_IMAGE: _Trait(False, "Send a readable PNG, JPEG, WebP, GIF, AVIF, BMP, TIFF or ICO."),
    Code.UNSUPPORTED: _Trait(False, "Leave it out, or choose another model."),
    Code.UNAUTHORIZED: _Trait(False, "Check the API key of this endpoint and its permissions."),
    Code.INSUFFICIENT_QUOTA: _Trait(False, "Top up the account or use another key."),
    Code.BUDGET: _Trait(True, ("Raise ", Named("max_cost"), " and send the rest again.")),
    Code.NOT_FOUND: _Trait(
        False,
        (
            *("Check ", Named("base_url"), " and ", Named("model_name")),
            Named("command", "models --check", "; {} lists the available models"),
            ".",
        ),
    ),
    Code.BAD_REQUEST: _Trait(False, "The endpoint does not accept this request: correct the cause named above."),
    Code.CONTEXT_LENGTH: _Trait(False, "Shorten the prompt, lower `max_tokens`, or use a model with a longer context."),
    Code.REQUEST_TOO_LARGE: _Trait(
        False, "Make this one request smaller: a shorter prompt or fewer or smaller images."
    ),
    Code.RATE_LIMITED: _Trait(True, "Try again later, or lower `concurrency`, or set `rpm` / `tpm`."),
    Code.SERVER_ERROR: _Trait(True, "The endpoint itself has a problem; try again later."),
    Code.BAD_RESPONSE: _Trait(
        True, ("Check that ", Named("base_url"), " is an OpenAI-compatible chat completions endpoint.")
    ),
    Code.EMPTY_ANSWER: _Trait(True, "The model returned an empty answer; try again or change the prompt."),
    Code.OPEN_REASONING: _Trait(
        False, "Change `stop` or the prompt, or set `reasoning: inline` to get the exact text of the model."
    ),
    Code.TRUNCATED: _Trait(False, _more_room(4096)),
    Code.CONTENT_FILTER: _Trait(False, "The provider's filter stopped this answer; rephrase the prompt."),
    Code.INVALID_ANSWER: _Trait(
        True,
        "Simplify the schema, describe its fields, loosen the check, raise `check_retries`, or use a stronger model.",
    ),
    Code.TIMEOUT: _Trait(True, "Raise `timeout`, lower `max_tokens`, or set `stream: true`."),
    Code.UNREACHABLE: _Trait(True, ("Start the endpoint or correct ", Named("base_url"), ".")),
    Code.CONNECTION_LOST: _Trait(True, "The endpoint or a proxy in between closed the connection; try again."),
    Code.TLS: _Trait(
        False, ("Check the certificate of the host, or whether ", Named("base_url"), " should begin with http://.")
    ),
    Code.NAME_RESOLUTION: _Trait(
        True, ("Check the host in ", Named("base_url"), " and this machine's name resolution.")
    ),
    Code.NO_FILE_DESCRIPTORS: _Trait(True, "Raise this process's limit of open files or lower `concurrency`."),
    Code.STORAGE: _Trait(True, "Free space there or make it writable, and run the job again; its answers are kept."),
    Code.ITEM_TIMEOUT: _Trait(True, "Raise `item_timeout`."),
    Code.DEADLINE: _Trait(True, "Send the unanswered items again, or raise `call_timeout`."),
    Code.BATCHED: _Trait(
        True, "No failure: the item waits for a batch, for a request of its own after the batch, or for an equal item."
    ),
    Code.DEFERRED: _Trait(False, "No failure: the item continues as a job; read its answer with `bulk_status`."),
    Code.OMITTED: _Trait(False, "No failure: the result was too large for one message; read it with `bulk_status`."),
    Code.REPLACED: _Trait(True, "Another configuration was loaded during the call; send these items again."),
    Code.SHUTDOWN: _Trait(True, "The engine was shut down during the call; send these items again."),
    Code.MISSING_DEPENDENCY: _Trait(False, "Install the named extra."),
    Code.ENGINE_LOAD_FAILED: _Trait(False, "Correct the cause in the configuration, and call again."),
    Code.ENGINE_DIED: _Trait(True, "The next call starts a new engine; send these items again."),
    Code.OUT_OF_MEMORY: _Trait(False, "Shorten the text, lower `max_tokens` or `batch_size`, or use a smaller model."),
    Code.INTERNAL: _Trait(False, "This is a bug in promptmill; please report it."),
}


class PromptmillError(Exception):
    """An error with a code and a hint, safe to show and to pickle.

    `message` states the problem and where it is; `hint` states the remedy. Neither contains API keys, prompts or
    images. Both contain names of arguments and configuration keys. A surface (the command line, a tool) replaces these
    names by its own, and omits the text around names that it lacks (`worded`).
    """

    said: Mapping[str, Any] | None = None
    """The endpoint's own error: the `status_code` of its response, and the fields of `error` in the body."""

    def __init__(self, code: Code, message: Words, hint: Words | None = None) -> None:
        super().__init__(code, message, hint)  # pickle rebuilds the error from these arguments
        self.code = code
        self.parts = parts_of(message)
        self.remedy = parts_of(_TRAITS[code].hint if hint is None else hint)
        self.message = worded(self.parts, argument_name)
        self.hint = worded(self.remedy, argument_name)

    @property
    def retryable(self) -> bool:
        """Whether the unchanged request may succeed later."""
        return _TRAITS[self.code].retryable

    def worded(self, name: Callable[[Named], str | None]) -> str:
        """Return the text with each name replaced by what `name` returns (None if the surface lacks the name)."""
        return f"{worded(self.parts, name)} {worded(self.remedy, name)}".rstrip()

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


def argument_name(named: Named) -> str | None:
    """Return the text that names an argument: `limit`, or `again: "all"` if `named` has a value.

    For the field `status`, return the name of the tool that reports on jobs. Return None for `command` (a command of
    promptmill) and `shell` (any other command), because texts that are stored or shown over MCP name no commands. Also
    return None if the name has an `otherwise`.
    """
    if named.field == "status":
        return "bulk_status"
    if named.field in {"command", "shell"} or named.otherwise:
        return None
    value = "" if named.value == "" else f": {json.dumps(named.value, ensure_ascii=False)}"
    return f"`{named.field}{value}`"


def parts_of(words: Words) -> tuple[str | Named, ...]:
    """Return the texts and names of an error or a note, in order."""
    return (words,) if isinstance(words, str) else tuple(words)


def worded(words: Words, name: Callable[[Named], str | None]) -> str:
    """Return the text of an error or a note with each name replaced by the result of `name`, as in `PromptmillError`.

    >>> worded(["3 PDFs sent as text; ", Named("pdf"), " chooses"], argument_name)
    '3 PDFs sent as text; `pdf` chooses'
    """
    texts = []
    for part in parts_of(words):
        if isinstance(part, str):
            texts.append(part)
        else:
            called = name(part)
            texts.append(part.otherwise if called is None else part.text.format(called))
    return "".join(texts)


class ArgumentError(PromptmillError, TypeError):
    """A function of promptmill was called with an unknown argument. It is a `TypeError`, as for any Python function."""


def truncated_error(tokens: int) -> PromptmillError:
    """Return the error for an answer that was cut before its first word, after `tokens` tokens (0: unknown). Its hint
    names a limit of at least twice the used tokens, and of at least 4,096 (most models think for 300 to 900)."""
    after = f", after {tokens:,} tokens" if tokens else ""
    cut = f"The answer was cut before its first word{after}, by `max_tokens` or the model's own limit."
    return PromptmillError(Code.TRUNCATED, cut, _more_room(max(4096, 1 << (2 * tokens - 1).bit_length())))


def input_error(*message: str | Named, hint: str = "") -> PromptmillError:
    """Return the error for a caller's mistake in an argument. `message` includes the remedy."""
    return PromptmillError(Code.INVALID_INPUT, message, hint)


def config_error(path: str | Named, *problem: str | Named) -> PromptmillError:
    """Return the error for the key or option at `path`. No colon precedes a `problem` that begins with a space."""
    colon = "" if isinstance(problem[0], str) and problem[0].startswith(" ") else ": "
    place = () if not path else (f"{path}{colon}",) if isinstance(path, str) else (path, colon)
    return PromptmillError(Code.INVALID_CONFIG, (*place, *problem), "")


# Characters that control a terminal or are invisible: C0, DEL and C1 (except white space), direction marks, U+200B.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)"
)
_URL_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
# A password in a connection to Postgres: a parameter of a URL, or libpq's own form.
_PASSWORD = re.compile(r"(?i)\b((?:ssl)?password=)[^\s&'\"]+")
_BEARER = re.compile(r"(?i)\b(bearer\s+|basic\s+(?=[A-Za-z]*[0-9])(?=[A-Za-z0-9+/=]{16}))[^\s\"',;]+")


def without_controls(text: str) -> str:
    """Return `text` with U+FFFD in place of characters that control a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def words_of(error: Exception, most: int) -> str:
    """Return an exception of another package as text: its type and the first line of its message, without secrets, in
    at most `most` characters.

    >>> words_of(ValueError("no rows\\nin the file"), 200)
    'ValueError: no rows'
    """
    return redact(f"{type(error).__name__}: {error}".splitlines()[0])[:most]


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return `text` without `secrets`, userinfo in URLs, bearer tokens and words that look like API keys.

    >>> redact("https://ada:word@example.com refused the header Authorization: Bearer abcdef")
    'https://[redacted]@example.com refused the header Authorization: Bearer [redacted]'
    """
    for secret in secrets:
        if len(secret) >= 4:
            text = text.replace(secret, "[redacted]")
    text = _URL_USERINFO.sub("[redacted]@", text)
    text = _PASSWORD.sub(r"\1[redacted]", text)
    text = _BEARER.sub(r"\1[redacted]", text)
    return KEY.sub(lambda match: "[redacted]" if KEY_RUN.search(match[1]) else match[0], text)


def first_line(error: BaseException | str) -> str:
    """Return the first line of an exception's message, redacted, without a full stop, with at most 200 characters.

    An exception without a message is described by the name of its class.
    """
    return redact(_line(error))[:200].rstrip(".")


def first_sentence(error: BaseException | str) -> str:
    """Return the first sentence of an exception's message, redacted, with at most 300 characters."""
    return f"{redact(_line(error).split('. ')[0])[:300].rstrip('.')}."


def _line(error: BaseException | str) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def looks_like_key(text: str) -> bool:
    """Return whether `text`, which should be a variable's name, looks like a pasted key."""
    mixed = len(text) >= 20 and text.upper() != text and any(character.isdigit() for character in text)
    return mixed or redact(text) != text or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)


def internal_error(what: str, error: BaseException) -> PromptmillError:
    """Convert an unexpected exception to INTERNAL. Log its traceback, but never its message, which may quote data."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logging.getLogger("promptmill").error("%s: %s\n%s", what, type(error).__name__, frames)
    return PromptmillError(Code.INTERNAL, f"{what}: {type(error).__name__}.")


def unwritable_parameters() -> PromptmillError:
    """Return the error for parameters that orjson cannot write."""
    return input_error(
        "`sampling_params`, `extra_params` or the system prompt cannot be written as JSON: they contain half a "
        "surrogate pair, a number above 64 bits, or nesting that is too deep. Correct that."
    )


def without_frames(error: BaseException) -> None:
    """Clear the tracebacks of a stored exception and its causes, so that they keep no frames alive.

    A frame refers to the call with all its answers, which refer to the error: only the garbage collector would free
    this cycle.
    """
    chained: BaseException | None = error
    while chained is not None and chained.__traceback__ is not None:
        chained.__traceback__ = None
        chained = chained.__cause__ or chained.__context__
