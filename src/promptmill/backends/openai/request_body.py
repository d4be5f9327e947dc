"""Writes request bodies: parameters, conversation and images, in the endpoint's dialect.

A body consists of a head (model and parameters), which is written once for all requests with the same parameters, and
of the messages. Images are encoded once per call and inserted as bytes.

    {"model":"m","temperature":0.7,"messages":[ {"role":"user","content":"…"} ]}
    └──────────── head ──────────────────────┘ └──────── per request ────────┘

`dialects` has the formats of the APIs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import orjson
import pybase64

from promptmill.answers.decision import decidable, evidence_of, instructions_of
from promptmill.backends.openai.dialects import DIALECTS
from promptmill.backends.openai.dialects.deciding import Deciding, FormQuestions
from promptmill.backends.openai.dialects.dialect import marked
from promptmill.backends.openai.endpoint import Endpoint
from promptmill.backends.openai.providers import LOCAL, ProviderProfile, profile_named
from promptmill.backends.openai.reply import ReplyRequest
from promptmill.backends.prompt_cache import ModelCache, PromptCache
from promptmill.backends.searches import may_search
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.errors import Code, Named, PromptmillError, redact, unwritable_parameters
from promptmill.core.request import (
    CACHE_MARKS,
    FEW_LOGPROBS,
    TOP_CHOICES,
    Conversation,
    FilePart,
    Message,
    Request,
    Sampling,
    Shared,
    SourcedPart,
    check_encodable,
)
from promptmill.core.values import JsonDict, JsonObject, json_text
from promptmill.core.wording import shape
from promptmill.images.files import NOUNS
from promptmill.images.load import KEPT_BYTES, ImageCache, ImageFile, ImageRules, WebImages, encoded_size, is_web
from promptmill.system.memory import Held

_MOST_HEADS, _MOST_HEAD_BYTES = 1024, 4 << 20  # limits of the kept heads; their values take several times as many bytes
_OURS = frozenset({"messages", "stream", "stream_options", TOP_CHOICES})
_LM_STUDIO = "'response_format.type' must be 'json_schema' or 'text'"  # lmstudio-ai/lmstudio-bug-tracker#189


# Refusals of a `response_format`, but not of its schema: from DeepSeek, Groq, pydantic in FastAPI, and others. After
# such a refusal, the schema is written into the prompt.
_FORM = r"(?:response[_ ]?format|json_schema|structured[_ ]output)"
_NO_FORM = re.compile(
    rf"(?<!schema for ){_FORM}.{{0,80}}(?:support|unavailable|unknown|unrecogni|type expected|extra inputs"
    r"|not (?:allowed|available|permitted|implemented))"
    rf"|(?:support|unknown|unrecogni|unexpected|extra inputs).{{0,60}}{_FORM}"
)
_NO_JSON = re.compile(r"input_(?:json|text)")  # vLLM's server takes evidence as text alone
_LOGPROBS = re.compile(rb'"top_logprobs":(\d+)')
_NO_USAGE = re.compile(r"stream_options|include_usage")
# Refusals by chat templates without a system turn, such as Gemma's (vLLM, SGLang, llama.cpp and TGI apply templates).
# Mistral's takes a system turn: "After the optional system message, conversation roles must alternate".
_NO_SYSTEM = re.compile(
    r"system (?:role|message|prompt)s? (?:is |are )?not supported"
    r"|(?<!optional system message, conversation )roles must alternate"
)
# The names of promptmill's parameters for each way of `ModelCache`, as they appear in a refusal.
_CACHE_NAMES = {
    "key": re.compile("prompt_cache_key"),
    "breakpoints": re.compile("prompt_cache_(?:key|options|breakpoint)"),
}
_OPTIONS = re.compile(rb'"prompt_cache_(?:options|retention)":')
_BREAKPOINT: JsonObject = {"prompt_cache_breakpoint": {"mode": "explicit"}}
# The cache mark of each way of `ModelCache`, for the usual time and for an hour.
_MARKS: Mapping[tuple[str, bool], JsonObject] = {
    ("breakpoints", False): _BREAKPOINT,
    ("breakpoints", True): _BREAKPOINT,  # OpenAI keeps the marked beginnings of prompts for at least half an hour
    ("marks", False): {"cache_control": {"type": "ephemeral"}},
    ("marks", True): {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
}
_WAYS = {"key": ("openai", "responses"), "breakpoints": ("openai", "responses"), "marks": ("anthropic",)}
"""For each way of caching (`ModelCache.way`), the dialects whose requests can ask for it."""


class Head(NamedTuple):
    """The part of a body that is equal for all requests with the same parameters."""

    text: bytes
    refused: list[str]
    """The parameters that the endpoint does not support."""
    words: str
    """Instructions to add to the conversation."""
    parameters: tuple[Sampling, JsonObject]
    wanted: ReplyRequest
    endpoint: Endpoint
    """The endpoint for requests with a complete answer. It belongs to the head, because some URLs name the model."""
    streaming: Endpoint
    """The endpoint for requests with a streamed answer."""
    cache: ModelCache | None
    """The endpoint's cache for the beginnings of prompts; None if requests cannot control the cache."""
    marks: frozenset[str]
    """The `CACHE_MARKS` that parts may have."""
    takes_system: bool
    """Whether the model takes a system turn; if not, the first user turn begins with the system prompt."""


class RequestEncoder:
    """Writes request bodies for one endpoint."""

    def __init__(self, endpoint: Endpoint, model: str, *, enable_thinking: bool | None, stream: bool) -> None:
        self._endpoint = endpoint
        self.model = model
        self._enable_thinking = enable_thinking
        self._stream = stream
        self._dialect = DIALECTS[endpoint.dialect]
        self._streamed = self._dialect.STREAMED
        self._without_system = set[str]()
        """The models that refused a system turn."""
        self._ours = _OURS | self._dialect.FILLED
        # keyed by identity: a call's requests share the objects, and a head keeps them alive, so no id is reused
        self._heads: dict[tuple[int, int], Head] = {}
        self._head_bytes = 0
        self._last: Head | None = None
        self._most_logprobs: int | None = None
        """The most `top_logprobs` that the endpoint takes; None until it refuses a number."""
        self._takes_json = True
        """Whether the endpoint takes evidence as JSON: True until it refuses it."""
        self._questions: dict[tuple[int, str], FormQuestions] = {}
        """The questions of a form, by the identity of the form and by the instructions."""

    @property
    def decides(self) -> bool:
        """Whether the endpoint takes evidence and questions, which `decision` writes, instead of conversations."""
        return isinstance(self._dialect, Deciding)

    def decision(self, head: Head, request: Request, images: Mapping[str, bytes]) -> tuple[bytes, FormQuestions]:
        """Return the body of a request to a deciding model, and its questions. Raises the same errors as `encode`, and
        `PromptmillError` (`unsupported`) for a part that the API does not take."""
        assert isinstance(self._dialect, Deciding)
        evidence, instructions = evidence_of(request), instructions_of(request)
        if not self._takes_json and not isinstance(evidence, str):
            evidence = json_text(evidence)
        key = id(request.form), instructions
        try:
            if (questions := self._questions.get(key)) is None:
                limits = self._dialect.limits(self._endpoint.profile)
                form = decidable(request.form, options=limits.options, levels=limits.levels)
                questions = self._dialect.form_questions(form, instructions)
                if len(self._questions) >= MOST_KEPT:  # each row may have its own instructions
                    self._questions.clear()
                self._questions[key] = questions
            sources = [images[image.source] for image in request.conversation.images]
            body = b"".join([head.text, *self._dialect.decision(evidence, questions.text, sources), b"}"])
        except (TypeError, orjson.JSONEncodeError):
            check_encodable(request.conversation)
            raise _unencodable() from None
        return body, questions

    def encode(
        self,
        head: Head,
        conversation: Conversation,
        images: Mapping[str, bytes],
        shared: Shared | None = None,
        *,
        stream: bool = False,
        for_an_hour: bool = False,
    ) -> bytes:
        """Return the body of a chat.

        `images` maps sources to JSON strings, which are inserted unchanged. `stream` requests a streamed answer even if
        the configuration does not. `shared`: the prompt's beginning, which the provider should cache. `for_an_hour`:
        cache it for an hour. A conversation that has cache marks gets no further marks.

        Raises `PromptmillError` (`invalid_input`) for text that JSON cannot represent.
        """
        text = head.text
        if stream and not self._stream and self._streamed:
            text = b"{%b,%b" % (orjson.dumps(self._streamed)[1:-1], text[1:])
        without_words = _length(conversation) if shared else 0
        if conversation.marks:
            conversation = conversation.with_marks(lambda message: self._marks_of(head, message))
        if head.words:
            conversation = conversation.with_words(head.words)
        if not head.takes_system:
            conversation = conversation.without_system
        if shared is not None and head.cache is not None and not _is_marked(conversation):
            text = _with_cache_options(text, head.cache, shared)
            if shared and (mark := _MARKS.get((head.cache.way, for_an_hour))):
                end = shared.characters + _length(conversation) - without_words
                conversation = marked(conversation, end, mark, roles=self._dialect.MARKED, least=head.cache.least)
        try:
            return b"".join([text, *self._dialect.conversation(conversation, images), b"}"])
        except (TypeError, AttributeError, orjson.JSONEncodeError):  # a message may have other fields with any JSON
            check_encodable(conversation)
            raise _unencodable() from None

    def lost_marks(self, head: Head, conversation: Conversation) -> list[str]:
        """Return the cache marks that the endpoint does not take at one or more positions in `conversation`."""
        lost = [self._lost(head, one) for one in conversation.messages if one.extra or type(one.content) is not str]
        return sorted(frozenset[str]().union(*lost)) if lost else []

    def _lost(self, head: Head, message: Message) -> set[str]:
        lost = set[str]()
        if isinstance(message.content, tuple):
            names = (name for part in message.content for name in part.marks or ())
            lost = {*names} - self._marks_of(head, message)
        if message.extra and self._dialect is not DIALECTS["openai"]:  # chat completions send all fields of a message
            of_messages = self._dialect.MARKS & {"cache_control"}  # a message itself may have only this mark
            lost |= CACHE_MARKS & message.extra.keys() - of_messages
        return lost

    def _marks_of(self, head: Head, message: Message) -> frozenset[str]:
        return head.marks if message.role in self._dialect.MARKED else frozenset()

    def encode_body(self, request: Request, images: Mapping[str, bytes]) -> bytes:
        """Return the body of a request that is not a chat. `images` has the URL, as JSON, of each `ImagePart` in it.

        Raises the same errors as `encode`.
        """
        body, plain = {"model": self.model, **request.extra}, orjson.OPT_PASSTHROUGH_DATACLASS
        try:
            return orjson.dumps(body, lambda part: orjson.Fragment(images[part.source]), plain)
        except (TypeError, orjson.JSONEncodeError):
            raise _unencodable() from None

    def head(self, request: Request) -> Head:
        """Return the head of a chat's body. Raises `PromptmillError` (`invalid_input`) for values that are not JSON."""
        last, sampling, extra = self._last, request.sampling, request.extra
        if last is not None and last.parameters[0] is sampling and last.parameters[1] is extra:
            return last
        identity = (id(sampling), id(extra))
        head = self._heads.get(identity)
        if head is None:
            body, refused, words = self._parameters(request.sampling, request.extra)
            try:
                text = orjson.dumps(body)
            except TypeError:  # the base class of orjson's error
                raise unwritable_parameters() from None
            text = text[:-1] + (b"," if body else b"")
            head = Head(
                text,
                refused,
                words,
                (sampling, extra),
                self.wanted(request),
                *self._places(extra),
                *self._caching(self._model_of(extra)),
                self._model_of(extra) not in self._without_system,
            )
            # if there are too many heads, all are dropped: each request may have other parameters, even a large schema
            if len(self._heads) >= _MOST_HEADS or self._head_bytes + len(text) > _MOST_HEAD_BYTES:
                self._heads.clear()
                self._head_bytes = 0
            self._heads[identity] = head
            self._head_bytes += len(text)
        self._last = head
        return head

    def wanted(self, request: Request) -> ReplyRequest:
        """Return how to read the reply to a request."""
        searches, is_inline = may_search(request.extra, self.model), request.sampling.reasoning == "inline"
        return ReplyRequest(request.has_form, searches, is_inline, model=self._model_of(request.extra))

    def is_corrected(self, head: Head, refusal: str) -> bool:
        """Return whether to send a request with a corrected head, because the refusal shows what the server accepts."""
        sent = head.endpoint.profile
        corrected: ProviderProfile | None = None
        if sent is LOCAL and _LM_STUDIO in refusal:
            corrected = profile_named("lmstudio")
        elif b'"response_format":' in head.text and sent.json.form != "words" and _NO_FORM.search(refusal.lower()):
            is_schema = b'"json_schema"' in head.text and sent.json.form != "object"
            corrected = replace(sent, json=replace(sent.json, form="object" if is_schema else "words"))
        elif head.takes_system and _NO_SYSTEM.search(refusal.lower()):
            self._without_system.add(self._model_of(head.parameters[1]))
            corrected = sent
        elif b'"stream_options":' in head.text and _NO_USAGE.search(refusal):
            self._streamed = {"stream": True}
            corrected = sent
        elif "logprobs" in refusal and (count := _LOGPROBS.search(head.text)) and int(count[1]) > FEW_LOGPROBS:
            self._most_logprobs = FEW_LOGPROBS
            corrected = sent
        elif head.cache is not None and (names := _CACHE_NAMES.get(head.cache.way)) and names.search(refusal):
            cache, has_breakpoints = sent.prompt_cache, head.cache.way == "breakpoints"
            known = replace(cache, breakpoints=None) if has_breakpoints else PromptCache(marks=cache.marks)
            corrected = replace(sent, prompt_cache=known)
        if corrected is None:
            return False
        if self._endpoint.profile is sent:  # otherwise, the refusal of another request has already corrected it
            self._endpoint = replace(self._endpoint, profile=corrected)
            self._heads.clear()
            self._last = None
        return True

    def sends_text(self, body: bytes, refusal: str) -> bool:
        """Return whether to send a refused request again with evidence as text, because the server takes no JSON."""
        if b'"input_json"' not in body or not _NO_JSON.search(refusal):
            return False
        self._takes_json = False
        return True

    def _model_of(self, extra: JsonObject) -> str:
        return str(extra.get("model", self.model))

    def _caching(self, model: str) -> tuple[ModelCache | None, frozenset[str]]:
        """Return how the endpoint caches beginnings for `model`, and the cache marks that parts may have."""
        profile, dialect = self._endpoint.profile.prompt_cache, self._endpoint.dialect
        cache = profile.of(model)
        can_ask = cache is not None and dialect in _WAYS.get(cache.way, ())
        marks = self._dialect.MARKS if dialect == "anthropic" else self._dialect.MARKS & profile.takes(model)
        return cache if can_ask else None, marks

    def _places(self, extra: JsonObject) -> tuple[Endpoint, Endpoint]:
        """Return the endpoints for requests with a complete and with a streamed answer."""
        endpoint, url = self._endpoint, self._dialect.url
        urls = [url(endpoint.url, str(extra.get("model", self.model)), stream=way) for way in (False, True)]
        one, streaming = (endpoint if url == endpoint.url else replace(endpoint, url=url) for url in urls)
        return streaming if self._stream else one, streaming

    def _parameters(self, sampling: Sampling, extra: JsonObject) -> tuple[JsonDict, list[str], str]:
        # extra parameters take precedence, as `extra_body` does in the `openai` package
        given = {name: value for name, value in extra.items() if name not in self._ours}
        ours = sampling.sent()
        if not isinstance(template := given.get("chat_template_kwargs") or {}, Mapping):
            raise PromptmillError(
                Code.INVALID_INPUT, f"`chat_template_kwargs` is {shape(template)}.", "Send an object, or leave it out."
            )
        if self._enable_thinking is not None and not ("enable_thinking" in given or "enable_thinking" in template):
            ours.setdefault("enable_thinking", self._enable_thinking)
        if "enable_thinking" in ours or given.get("enable_thinking") is None:
            given.pop("enable_thinking", None)
        if self._most_logprobs and (count := given.get("top_logprobs")):
            given["top_logprobs"] = min(count, self._most_logprobs)
        profile, model = self._endpoint.profile, str(given.get("model", self.model))
        try:
            body, refused, words = self._dialect.parameters(profile, model, ours, given)
        except (TypeError, ValueError, AttributeError):  # a call may send any JSON
            text = f"A parameter has a value of another type than the API of {self._endpoint.name} takes."
            raise PromptmillError(Code.INVALID_INPUT, text) from None
        if self._stream:
            body |= self._streamed
        return body, refused + [name for name in extra if name in self._ours], words


def _unencodable() -> PromptmillError:
    said = "The request contains a value that JSON cannot represent, or is nested too deeply."
    return PromptmillError(Code.INVALID_INPUT, said)


def _with_cache_options(text: bytes, cache: ModelCache, shared: Shared) -> bytes:
    """Return the head of a body, with missing parameters of the provider's cache added.

    Without `mode: explicit`, a model with breakpoints also writes the rest of each prompt to the cache, at 1.25 times
    the price of the prompt. OpenAI refuses `prompt_cache_options` together with `prompt_cache_retention`.
    """
    if shared and cache.way in {"key", "breakpoints"} and b'"prompt_cache_key":' not in text:
        text = b'{"prompt_cache_key":"%b",%b' % (shared.key.encode(), text[1:])
    if cache.way == "breakpoints" and not _OPTIONS.search(text):
        text = b'{"prompt_cache_options":{"mode":"explicit"},' + text[1:]
    return text


def _is_marked(conversation: Conversation) -> bool:
    """Return whether a message or one of its parts has a cache mark."""
    of_messages = any(message.extra and not CACHE_MARKS.isdisjoint(message.extra) for message in conversation.messages)
    return of_messages or bool(conversation.marks)


def _length(conversation: Conversation) -> int:
    """Return the number of characters in messages that are plain texts."""
    return sum(len(message.content) for message in conversation.messages if isinstance(message.content, str))


class _Encoded(dict[str, bytes]):
    """Encoded images and files by source, with the memory that they hold until this object is deleted."""

    held: Held | None = None


class ImageEncoder:
    """Encodes the images and files of one call, each once and outside of the event loop.

    The endpoint gets a `data:` URL, or the URL of a web image.
    """

    def __init__(
        self, rules: Callable[[], ImageRules], fetcher: WebImages | None, kept_bytes: int = KEPT_BYTES
    ) -> None:
        """With a `fetcher`, this process downloads what is on the web; otherwise the endpoint gets the URLs of images.

        `rules` is called for the first image or file, and returns the rules. Up to `kept_bytes` of encoded images and
        files are kept for later requests.
        """
        self._rules, self._fetcher, self._kept_bytes = rules, fetcher, kept_bytes
        self._image_cache: ImageCache | None = None

    def passes_on(self, images: Sequence[SourcedPart]) -> bool:
        """Return whether the endpoint gets the URL of one of these `images`."""
        return self._fetcher is None and any(is_web(image.source) for image in images)

    async def read(self, parts: Sequence[SourcedPart]) -> Mapping[str, bytes]:
        """Return, by the source of each part, the URL to send as a JSON string. Wait until there is memory for files.

        Raises `PromptmillError` (`invalid_image`; `invalid_input` for a file).
        """
        encoded = _Encoded()
        if files := [part for part in parts if isinstance(part, FilePart)]:
            rules = self._rules()
            for kind in {part.kind for part in files} - rules.limits.keys():
                named = Named("backend_configs.openai.files", [kind])
                words = ("Choose an endpoint that takes it, or state that this one does: ", named, ".")
                raise PromptmillError(Code.UNSUPPORTED, f"The endpoint is not known to take a {NOUNS[kind]}.", words)
            encoded.held = rules.in_flight.hold()
            size = await asyncio.to_thread(lambda: sum(encoded_size(part, rules) for part in files))
            await asyncio.wrap_future(encoded.held.grow(size))
        encoded |= {part.source: await self._one(part) for part in parts}
        for kind, limits in self._rules().limits.items() if parts[1:] else ():
            sizes = [len(encoded[part.source]) * 3 // 4 for part in parts if part.kind == kind]
            limits.check_size(sum(sizes), f"Each {NOUNS[kind]} of the row together")
        return encoded

    async def _one(self, part: SourcedPart) -> bytes:
        if self._fetcher is None and is_web(part.source):
            if part.kind != "image":
                raise PromptmillError(
                    Code.INVALID_INPUT,
                    f"{redact(part.source[:80])} is on the web.",
                    "Name a local file, or set `fetch_images: true` so that promptmill downloads it.",
                )
            try:
                return orjson.dumps(part.source)
            except TypeError:
                raise PromptmillError(
                    Code.INVALID_IMAGE, "The URL of an image holds half a surrogate pair.", "Write it percent-encoded."
                ) from None
        if self._image_cache is None:
            fetch = None if self._fetcher is None else self._fetcher.fetch
            self._image_cache = ImageCache(self._rules(), _json_url, fetch, self._kept_bytes)
        return await self._image_cache.read(part)

    def close(self) -> None:
        """Stop all running reads and downloads."""
        if self._image_cache is not None:
            self._image_cache.close()


def _json_url(image: ImageFile) -> bytes:
    return b'"data:%b;base64,%b"' % (image.media_type.encode(), pybase64.b64encode(image.data))
