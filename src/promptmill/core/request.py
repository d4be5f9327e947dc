"""A request: its conversation, which is built from callers' input, and its sampling parameters.

Accepted forms: plain text; `{"content": …}` and `{"text": …}`; MCP prompt messages (modelcontextprotocol.io, prompts);
OpenAI chat messages (platform.openai.com, chat completions). MCP blocks with images, audio, PDFs and embedded text
become parts. Any other form is refused, and the error states its position and kind.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import operator
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from promptmill.core.bounds import MOST_CHOICES, MOST_KEPT
from promptmill.core.errors import Code, Named, PromptmillError, config_error, input_error
from promptmill.core.form import Form
from promptmill.core.parameter import (
    APPLIED,
    OF_FIELDS,
    OF_OPERATOR,
    SOURCED,
    Added,
    OfPrograms,
    Parameters,
    Protecting,
)
from promptmill.core.texts import UNSENT, Change, TextKind, changed, texts_of
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import shape

T = TypeVar("T")
_AUDIO = "data:audio/"
_LONGEST_HEAD = 200  # characters of a `data:` URL before its data
ROLES = frozenset({"system", "user", "assistant", "developer", "tool"})
SYSTEM_ROLES = frozenset({"system", "developer"})
_ACCEPTED = 'Send a string, {"content": "…"}, {"text": "…"} or {"role": "user", "content": "…"}.'
TOP_CHOICES = "top_choices"
"""The parameter that states how many of the most probable choices are reported, with their probabilities."""
FEW_LOGPROBS = 5
"""The `top_logprobs` that all endpoints with this parameter support."""
BESIDE = frozenset({"tools", "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs", TOP_CHOICES})
"""Parameters of OpenAI, and one of promptmill, that a call may put into `sampling_params`. They are sent with
`extra_params`."""

PASSED_ON = frozenset({"chat_template_kwargs", "logit_bias", "structured_outputs"})
"""Parameters of OpenAI and vLLM that a request to `/v1`, or in a Batch file, may have. They are sent with
`extra_params`."""


CACHE_MARKS = frozenset({"prompt_cache_breakpoint", "cache_control"})
"""OpenAI's and Anthropic's fields of a part that mark the end of what the provider's prompt cache stores."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text between images. `marks`: the part's `CACHE_MARKS`."""

    text: str
    marks: JsonObject | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image. `source`: a local path or a `file:`, `http(s):` or `data:` URL. `detail`: the resolution, as in
    OpenAI's API. `marks`: the part's `CACHE_MARKS`."""

    kind: ClassVar[Literal["image"]] = "image"
    source: Annotated[str, TextKind.SOURCE]
    detail: str | None = None
    marks: JsonObject | None = field(default=None, hash=False)


FileKind: TypeAlias = Literal["pdf", "audio"]


class FileTokens(NamedTuple):
    """The likely tokens of a file, 0 if unknown, and the most: a number, or the words of an error that states why no
    bound is known."""

    likely: int = 0
    most: int | tuple[str | Named, ...] = ("`max_cost` cannot bound what a file costs; leave it out.",)


@dataclass(frozen=True, slots=True)
class FilePart:
    """A PDF or a recording that is sent as it is. `source`: see `ImagePart`. `name`: the caller's name for the file.

    The `data:` URL of a recording names its format as OpenAI does: `data:audio/mp3;base64,…`. `marks`: see `TextPart`.
    `tokens`: only in a copy of the request, for its cost.
    """

    source: Annotated[str, TextKind.SOURCE]
    kind: Annotated[FileKind, UNSENT]
    name: str = ""
    marks: JsonObject | None = field(default=None, hash=False)
    tokens: Annotated[FileTokens, UNSENT] = field(default=FileTokens())


SourcedPart: TypeAlias = ImagePart | FilePart
"""A part whose bytes are read when its request is sent."""
Part: TypeAlias = TextPart | SourcedPart
ImagePosition: TypeAlias = Literal["after", "before"]
"""The position of images relative to a text without tags."""


@dataclass(slots=True, unsafe_hash=True)  # not frozen, because creating it would take twice as long
class Message:
    """One turn. `extra` (`tool_calls`, `name`, …) is passed to the endpoint or chat template unchanged.

    A message must not be changed.
    """

    role: Annotated[str, UNSENT]
    content: str | tuple[Part, ...] | None
    extra: JsonObject | None = None

    def as_openai(self) -> JsonDict:
        """Return the turn as an OpenAI message."""
        content: object = self.content
        if isinstance(content, tuple):
            content = [_openai_part(part) for part in content]
        return {**(self.extra or {}), "role": self.role, "content": content}


def _openai_part(part: Part) -> JsonDict:
    marks = part.marks or {}
    match part:
        case TextPart(text):
            return {"type": "text", "text": text, **marks}
        case FilePart(source, "pdf", name):
            file = {"file_data": source} | ({"filename": name} if name else {})
            return {"type": "file", "file": file, **marks}
        case FilePart(source):
            head, comma, data = source.partition(";base64,")
            audio = {"data": data, "format": head.removeprefix(_AUDIO)} if comma else {"data": source, "format": ""}
            return {"type": "input_audio", "input_audio": audio, **marks}
        case ImagePart(source, detail):
            url = {"url": source} | ({"detail": detail} if detail else {})
            return {"type": "image_url", "image_url": url, **marks}


def with_words(system_prompt: str, words: str) -> str:
    """Return a system prompt with `words` after it; either may be `""`."""
    return "\n\n".join(filter(None, (system_prompt, words)))


_MOST_COMPARED = 10_000_000
"""The largest product of the number of names and the number of searched characters. Such a search takes 20 ms."""
_UNSPACED = "\u2e80"
"""Unicode's first character of the scripts that write words without spaces."""


class Shown(NamedTuple):
    """Words at the end of a system prompt that tell the model which form its answer must have."""

    words: str = ""
    names: tuple[str, ...] = ()
    """The names in `words`: a prompt that has all of them does not get `words`. `()` if every prompt gets `words`."""

    def beside(self, texts: Sequence[str]) -> str:
        """Return the words for a prompt with these texts; `""` if the texts have all names.

        >>> shown = Shown("The labels:\\n- yes\\n- no", ("yes", "no"))
        >>> shown.beside(["Spam, Yes or No?"]), shown.beside(["Is it spam? Yesterday: none"])
        ('', 'The labels:\\n- yes\\n- no')
        """
        if not self.names or sum(map(len, texts)) * len(self.names) > _MOST_COMPARED:
            return self.words
        whole = "\n".join(texts).lower()
        return "" if all(_has_word(whole, name.lower()) for name in self.names) else self.words


NOT_SHOWN = Shown()


def _has_word(text: str, word: str) -> bool:
    """Return whether a text has a word as a whole word, not only inside a longer word."""
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not (_joins(text[at - 1 : at], word[:1]) or _joins(text[end : end + 1], word[-1:])):
            return True
        at = text.find(word, at + 1)
    return False


def _joins(sign: str, other: str) -> bool:
    return sign.isalnum() and other.isalnum() and max(sign, other) < _UNSPACED


@dataclass(slots=True, unsafe_hash=True)
class Conversation:
    """The turns of one request, which must not be changed."""

    messages: tuple[Message, ...]

    @property
    def sourced(self) -> list[SourcedPart]:
        """All images and files, in order."""
        parts: list[SourcedPart] = []
        for message in self.messages:
            if isinstance(message.content, tuple):
                parts += [part for part in message.content if not isinstance(part, TextPart)]
        return parts

    @property
    def images(self) -> list[ImagePart]:
        """All images, in order."""
        return [part for part in self.sourced if isinstance(part, ImagePart)]

    @property
    def texts(self) -> list[str]:
        """The texts of all turns, in order."""
        texts: list[str] = []
        for message in self.messages:
            if isinstance(message.content, tuple):
                texts += [part.text for part in message.content if isinstance(part, TextPart)]
            elif message.content:
                texts.append(message.content)
        return texts

    @property
    def file_kinds(self) -> set[FileKind]:
        """The kinds of the conversation's files; also `audio` if a turn refers to a sound stored at the endpoint."""
        kinds = set[FileKind]()
        for message in self.messages:  # a loop, because a generator would take four times as long
            if isinstance(message.content, tuple):
                kinds.update(part.kind for part in message.content if isinstance(part, FilePart))
            if message.extra and "audio" in message.extra:
                kinds.add("audio")
        return kinds

    @property
    def marks(self) -> frozenset[str]:
        """The names of the cache marks of all parts."""
        names: frozenset[str] = frozenset()  # `frozenset[str]()` takes four times as long
        for message in self.messages:
            if isinstance(message.content, tuple):
                names = names.union(*(part.marks for part in message.content if part.marks))
        return names

    def with_marks(self, kept: Callable[[Message], Container[str]]) -> Conversation:
        """Return the conversation without some cache marks. `kept` returns the marks that a message's parts keep."""
        return Conversation(tuple(_with_marks(message, kept(message)) for message in self.messages))

    def as_messages(self) -> list[JsonDict]:
        """Return the turns as OpenAI messages, the inverse of `conversation_from_messages`."""
        return [message.as_openai() for message in self.messages]

    def with_system(self, system_prompt: str) -> Conversation:
        """Return the conversation with `system_prompt` in place of a leading system turn; `""` changes nothing.

        The turn is replaced because many chat templates fail on two system turns.
        """
        if not system_prompt:
            return self
        rest = self.messages[1:] if self.messages and self.messages[0].role in SYSTEM_ROLES else self.messages
        return Conversation((Message("system", system_prompt), *rest))

    @property
    def without_system(self) -> Conversation:
        """The conversation with its system prompt at the beginning of the first user turn: some chat templates, such as
        Gemma's, refuse a system turn."""
        first, *rest = self.messages or (Message("user", ""),)
        if first.role not in SYSTEM_ROLES or not rest or rest[0].role != "user":
            return self
        own, asked = first.content or "", rest[0].content or ""
        content: str | tuple[Part, ...]
        if isinstance(own, str) and isinstance(asked, str):
            content = f"{own}\n\n{asked}"
        else:
            before, after = (one if isinstance(one, tuple) else (TextPart(one),) for one in (own, asked))
            content = (*before, TextPart("\n\n"), *after)
        return Conversation((Message("user", content, rest[0].extra), *rest[1:]))

    def with_words(self, words: str) -> Conversation:
        """Return the conversation with `words` after its system prompt; `""` changes nothing."""
        if not words:
            return self
        first = self.messages[0] if self.messages else None
        if first is None or first.role not in SYSTEM_ROLES:
            return Conversation((Message("system", words), *self.messages))
        own = first.content
        content = (*own, TextPart(f"\n\n{words}")) if isinstance(own, tuple) else with_words(own or "", words)
        return Conversation((Message(first.role, content, first.extra), *self.messages[1:]))

    def composed(self, system_prompt: str, shown: Shown) -> Conversation:
        """Return the conversation as it is sent, displayed and estimated: with `system_prompt` (`""` changes nothing),
        and with the words of `shown` if the conversation's texts lack one of the names."""
        conversation = self.with_system(system_prompt)
        return conversation.with_words(shown.beside(conversation.texts)) if shown.words else conversation

    def with_sources(self, change: Callable[[SourcedPart], str]) -> Conversation:
        """Return the conversation with the result of `change` as the source of each image and file."""
        if not self.sourced:
            return self
        return Conversation(tuple(_with_sources(message, change) for message in self.messages))

    def with_images(
        self, sources: Sequence[str | FilePart], image_tag: str | None, position: ImagePosition = "after"
    ) -> Conversation:
        """Return the conversation with images and files in its last message: images at the message's image tags, and
        everything else before or after its text.

        Without `sources`, a tag in the text stays text. Raises `PromptmillError` (`invalid_input`) if the numbers of
        tags and images differ.
        """
        if not sources:
            return self
        *before, last = self.messages
        content = last.content
        parts: Sequence[Part] = content if isinstance(content, tuple) else (TextPart(content or ""),)
        given = [ImagePart(source) if isinstance(source, str) else source for source in sources]
        if image_tag and (images := [part for part in given if isinstance(part, ImagePart)]):
            parts = _place_at_tags(parts, images, image_tag)
            given = [part for part in given if isinstance(part, FilePart)]
        placed = (*given, *parts) if position == "before" else (*parts, *given)
        kept = tuple(part for part in placed if not isinstance(part, TextPart) or part.text)
        return Conversation((*before, Message(last.role, kept, last.extra)))


def _with_sources(message: Message, change: Callable[[SourcedPart], str]) -> Message:
    if not isinstance(message.content, tuple):
        return message
    parts = (part if isinstance(part, TextPart) else replace(part, source=change(part)) for part in message.content)
    return Message(message.role, tuple(parts), message.extra)


def _with_marks(message: Message, kept: Container[str]) -> Message:
    if not isinstance(message.content, tuple):
        return message
    parts = (
        replace(part, marks={name: mark for name, mark in part.marks.items() if name in kept} or None)
        if part.marks
        else part
        for part in message.content
    )
    return Message(message.role, tuple(parts), message.extra)


def _place_at_tags(parts: Sequence[Part], images: Sequence[ImagePart], image_tag: str) -> list[Part]:
    tags = sum(part.text.count(image_tag) for part in parts if isinstance(part, TextPart))
    if tags != len(images):  # compared before anything is created per tag: megabytes of text may consist of tags
        raise input_error(
            f"The prompt contains the image tag {tags} time(s) but has {len(images)} image(s); "
            "send one image per tag, or no image tag to put the images after the text."
        )
    return list(_tagged(parts, iter(images), image_tag))


def _tagged(parts: Iterable[Part], images: Iterator[ImagePart], image_tag: str) -> Iterator[Part]:
    for part in parts:
        if not isinstance(part, TextPart):
            yield part
            continue
        first, *others = part.text.split(image_tag)
        yield TextPart(first, None if others else part.marks)
        for at, text in enumerate(others, 1):
            ends = part.marks if at == len(others) else None  # the marks belong to the end of the part
            image = next(images)
            yield replace(image, marks=ends) if ends and not text else image
            yield TextPart(text, ends)


def conversation_from_prompt(item: object, where: str) -> Conversation:
    """Return the conversation for one prompt item. `where`: the item's name in errors, such as `prompts[3]`.

    Raises `PromptmillError` (`invalid_input`) for a form that this module's docstring does not list.
    """
    if isinstance(item, str):
        return Conversation((Message("user", item),))
    if not isinstance(item, Mapping):
        raise input_error(f"{where} is {shape(item)}. {_ACCEPTED}")
    if "role" in item:
        return Conversation((message_from(item, where),))
    if (block := _mcp_block(item)) is not None:
        return Conversation((Message("user", (block,)),))
    keys = set(item) - {"annotations", "_meta"}
    if keys in ({"content"}, {"content", "type"}):
        return Conversation((Message("user", _content(item["content"], where)),))
    if keys == {"text"} or (keys == {"text", "type"} and item["type"] == "text"):
        return Conversation((Message("user", _text(item["text"], f"{where}.text")),))
    raise input_error(f"{where} is {shape(item)}. {_ACCEPTED}")


def conversation_from_messages(messages: Sequence[object], where: str) -> Conversation:
    """Return the conversation for OpenAI-style `messages`, at least one.

    Raises `PromptmillError` (`invalid_input`) that names the message, for another form or an unknown role.
    """
    if not messages:
        raise input_error(f'{where} is empty. Send at least one message, such as {{"role": "user", "content": "…"}}.')
    return Conversation(tuple(message_from(message, f"{where}[{i}]") for i, message in enumerate(messages)))


def message_from(item: object, where: str) -> Message:
    """Return the turn for an OpenAI-style message. Raises as `conversation_from_messages` does."""
    if not isinstance(item, Mapping):
        raise input_error(f'{where} is {shape(item)}. Send {{"role": "user", "content": "…"}}.')
    role = item.get("role")
    if role is None and {"from", "value"} <= item.keys():
        raise input_error(
            f'{where} has `from` and `value`; write {{"role": "user", "content": "…"}}, with role assistant for gpt.'
        )
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        given_role = "no role" if role is None else f"the role {role!r:.40}" if isinstance(role, str) else shape(role)
        raise input_error(f"{where} has {given_role}. Known roles: {known}.")
    extra = {key: value for key, value in item.items() if key not in {"role", "content"} and value is not None}
    content = item.get("content")
    if content is None:
        if role != "assistant" or not any(value for key, value in extra.items() if key != "name"):
            raise input_error(f"{where} has no content. Give it a text.")
        return Message(role, None, extra)
    return Message(role, _content(content, where), extra or None)


def _content(content: object, where: str) -> str | tuple[Part, ...]:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        if content.get("type", "text") == "text" and "text" in content:
            text = _text(content["text"], f"{where}.content.text")
            return (TextPart(text, marks),) if (marks := marks_in(content)) else text
        if (block := _mcp_block(content)) is not None:
            return (block,)
    elif isinstance(content, list) and content:
        return tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    raise input_error(f"{where}.content is {shape(content)}. Send a text or a list of text and image_url parts.")


def _part(part: object, where: str) -> Part:
    match part:
        case {"type": "text", "text": text}:
            return TextPart(_text(text, f"{where}.text"), marks_in(part))
        case {"type": "image_url", "image_url": {"url": str(url), **options}}:
            detail = options.get("detail")
            return ImagePart(url, detail if isinstance(detail, str) else None, marks_in(part))
        case {"type": "image_url", "image_url": str(url)}:
            return ImagePart(url, None, marks_in(part))
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(form)}}:
            head, comma, _ = data[:_LONGEST_HEAD].partition(";base64,")  # some clients send a `data:` URL
            if comma and head.startswith(_AUDIO):
                return _recording(data[len(head) + len(comma) :], head.removeprefix("data:"), marks_in(part))
            return FilePart(f"{_AUDIO}{form};base64,{data}" if form else data, "audio", "", marks_in(part))
        case {"type": "file", "file": {"file_data": str(source), **options}}:
            name = options.get("filename")
            return FilePart(source, "pdf", name if isinstance(name, str) else "", marks_in(part))
    if isinstance(part, Mapping) and (block := _mcp_block(part)) is not None:
        return block
    raise input_error(
        f'{where} is {shape(part)}. Send {{"type": "text", "text": "…"}} or '
        '{"type": "image_url", "image_url": {"url": "…"}}.'
    )


def marks_in(part: object) -> JsonDict | None:
    """Return the cache marks of a part; None without marks."""
    if not isinstance(part, Mapping) or CACHE_MARKS.isdisjoint(part):
        return None
    return {name: part[name] for name in sorted(CACHE_MARKS) if part.get(name) is not None} or None


def _mcp_block(block: Mapping[Any, Any]) -> Part | None:
    """Return an MCP content block as a part; None for other objects."""
    marks = marks_in(block)
    match block:
        case {"type": "image", "data": str(data), "mimeType": str(media_type)}:
            return ImagePart(f"data:{media_type};base64,{data}", None, marks)
        case {"type": "audio", "data": str(data), "mimeType": str(media_type)}:
            return _recording(data, media_type, marks)
        case {"type": "resource", "resource": {"text": str(text)}}:
            return TextPart(text, marks)
        case {"type": "resource", "resource": {"blob": str(data), "mimeType": str(media_type), **more}}:
            source = f"data:{media_type};base64,{data}"
            if media_type == "application/pdf":
                return FilePart(source, "pdf", str(more.get("uri") or "").rpartition("/")[2], marks)
            if media_type.startswith("audio/"):
                return _recording(data, media_type, marks)
            return ImagePart(source, None, marks) if media_type.startswith("image/") else None
    return None


def _recording(data: str, media_type: str, marks: JsonDict | None) -> FilePart:
    kind = media_type.partition("/")[2].partition(";")[0].removeprefix("x-")
    form = {"mpeg": "mp3", "wave": "wav"}.get(kind, kind)
    return FilePart(f"{_AUDIO}{form};base64,{data}", "audio", "", marks)


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    raise input_error(f"{where} is {shape(value)}, not a text.")


def nested(value: Any) -> Iterator[Any]:
    """Yield a value, and all keys and values inside it.

    >>> [*nested({"a": [1, None]})]
    [{'a': [1, None]}, [1, None], None, 1, 'a']
    """
    waiting = [value]
    while waiting:
        yield (inner := waiting.pop())
        if isinstance(inner, Mapping):
            waiting += inner
            waiting += inner.values()
        elif isinstance(inner, list | tuple):
            waiting += inner


def is_longer(value: Any, most: int) -> bool:
    """Return whether the JSON text of `value` is certainly longer than `most` characters.

    The JSON text is not written, because tens of megabytes would block all other work.
    """
    left = most
    for inner in nested(value):
        left -= len(inner) if isinstance(inner, str | list | Mapping) else 1
        if left < 0:
            return True
    return False


def check_encodable(conversation: Conversation) -> None:
    """Raise `PromptmillError` (`invalid_input`) if a text has a lone surrogate, which UTF-8 cannot represent."""
    for text in conversation.texts:
        if text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"The prompt contains an unpaired surrogate at character {error.start}"
            raise input_error(f"{found}; remove it or send the whole character.") from None


def _list_of_stops(value: object) -> object:
    if not isinstance(value, str | list | tuple | None):
        raise PydanticCustomError("stops", "should be a text or a list of texts")
    return [value] if isinstance(value, str) else value


def list_of_choices(value: object) -> object:
    """Return the texts that a list or a comma-separated text contains. (Texts with commas are in double quotes.)

    Raises `ValueError` for any other value.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = next(csv.reader([value], skipinitialspace=True), [])
    if not isinstance(value, list | tuple) or not all(type(one) in {str, int} for one in value):
        raise PydanticCustomError("choices", "should be a list of texts (in YAML, put yes and no into quotes)")
    choices = [str(one).strip() for one in value]
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise PydanticCustomError("choices", "should be at least two different texts")
    if len(choices) > MOST_CHOICES:
        raise PydanticCustomError("choices", "should be at most {most} texts", {"most": MOST_CHOICES})
    return choices


def _none_for_one(value: int | None) -> int | None:
    return None if value == 1 else value


def replacing_choices(changes: JsonObject) -> JsonDict:
    """Return `changes` to sampling parameters, extended by removals: a new `response_format` removes earlier `choices`
    and `definitions`, and new `choices` remove earlier `definitions`."""
    replaced: JsonDict = {} if changes.get("response_format") is None else {"choices": None, "definitions": None}
    return replaced | ({} if changes.get("choices") is None else {"definitions": None}) | dict(changes)


def _with_known_type(value: JsonDict | None) -> JsonDict | None:
    if value is not None and not isinstance(value.get("type", ""), str):
        raise PydanticCustomError("response_format", "should have a text as its `type`")
    return value


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "should be a number, not true or false")
    return value


_Number = Annotated[float | None, BeforeValidator(_no_boolean)]  # Python would read true as 1
_Whole = Annotated[int | None, BeforeValidator(_no_boolean)]


class _TokenChoice(Parameters):
    """The parameters for choosing each token."""

    temperature: _Number = Field(None, ge=0, description="Randomness; 0 always takes the likeliest token.")
    top_p: _Number = Field(None, ge=0, le=1, description="Choose among the likeliest tokens of this joint probability.")
    seed: _Whole = Field(None, ge=-(2**63), lt=2**63, description="Makes random choices repeatable, item by item.")
    presence_penalty: _Number = Field(None, ge=-2, le=2, description="Make tokens that occurred less likely.")
    frequency_penalty: _Number = Field(
        None, ge=-2, le=2, description="Make tokens less likely, in proportion to their occurrences."
    )
    top_k: _Whole = Field(None, ge=-1, description="Choose among this many likeliest tokens; 0 or -1 for all.")
    min_p: _Number = Field(None, ge=0, le=1, description="Leave out tokens below this share of the likeliest one.")
    repetition_penalty: _Number = Field(None, gt=0, description="Divide the score of tokens that occurred; 1 is off.")


class _OwnSampling(_TokenChoice):
    """The parameters of the core."""

    max_tokens: _Whole = Field(None, ge=1, description="Longest answer, in tokens.")
    stop: Annotated[list[str] | None, BeforeValidator(_list_of_stops), TextKind.EVIDENCE] = Field(
        None, description="End the answer before any of these texts."
    )
    n: Annotated[_Whole, AfterValidator(_none_for_one), APPLIED] = Field(
        None, ge=1, le=128, description="Number of answers to each prompt; `answers` holds all of them."
    )
    response_format: Annotated[JsonDict | None, AfterValidator(_with_known_type)] = Field(
        None, description="OpenAI's `response_format`: JSON mode or a schema."
    )
    choices: Annotated[list[str] | None, BeforeValidator(list_of_choices), APPLIED, TextKind.ANSWER] = Field(
        None, description="The answer is one of these texts; takes the place of `response_format`."
    )
    definitions: Annotated[dict[str, str] | None, APPLIED, TextKind.INSTRUCTION] = Field(
        None, description="The meaning of each label of an answer, by label; the system prompt has them at its end."
    )
    reasoning_effort: Annotated[str | None, TextKind.NAME] = Field(
        None, description="How long a reasoning model thinks: `low`, `medium`, `high`, …"
    )
    enable_thinking: bool | None = Field(None, description="Whether a model that can reason does so before its answer.")
    reasoning: Annotated[Literal["separate", "inline"] | None, APPLIED] = Field(
        None, description="Like the key `reasoning` of the configuration, which it overrides."
    )


ADDED = Added.to(_OwnSampling.model_fields.keys() | BESIDE | PASSED_ON)
"""The parameters that features add."""


class Sampling(_OwnSampling, *ADDED.classes):  # type: ignore[misc]  # features may add some
    """Parameters for choosing tokens. The engine or endpoint decides about unset parameters.

    Names are as in OpenAI's chat completions; `top_k`, `min_p` and `repetition_penalty` are vLLM's.
    """

    model_config = ConfigDict(defer_build=False)

    def given(self) -> JsonDict:
        """Return the parameters that are set, by name."""
        return {name: value for name, value in self if value is not None}

    def beside_prompt(self) -> JsonDict:
        """Return the parameters that are set, by name, without `definitions`, which the system prompt has."""
        return {name: value for name, value in self if value is not None and name != "definitions"}

    def protection(self) -> Sampling:
        """Return the parameters that protect what is sent, for a request that has no others."""
        kept = {name: value for name in PROTECTING_NAMES if (value := getattr(self, name)) is not None}
        return type(self).model_construct(**kept)

    def sets(self, names: Iterable[str]) -> bool:
        """Return whether one of these parameters is set. Other names are ignored."""
        return any(getattr(self, name, None) is not None for name in names)

    def sent(self) -> JsonDict:
        """Return the parameters that are set, by name, without those that promptmill applies itself."""
        return {name: value for name, value in self if value is not None and name not in APPLIED_NAMES}


OF_FORM = frozenset({"choices", "definitions", "response_format"})
"""The parameters of the form of an answer."""
APPLIED_NAMES = Sampling.marked(APPLIED)
"""The parameters that promptmill applies itself, for every backend."""
OF_FIELDS_NAMES = Sampling.marked(OF_FIELDS)
"""The parameters that make an answer depend on the fields in the request's prompt."""
SOURCED_NAMES = Sampling.marked(SOURCED)
"""The parameters that add sources to answers."""
OF_OPERATOR_NAMES = Sampling.marked(OF_OPERATOR)
"""The parameters that an untrusted client may not set."""
_OF_PROGRAMS = Sampling.marks(OfPrograms)
_PROTECTING = Sampling.marks(Protecting)
PROTECTING_NAMES = frozenset(_PROTECTING)
"""The parameters that protect what is sent."""


def check_of_data(given: JsonObject, ours: Sampling) -> None:
    """Raise `PromptmillError` (`invalid_config`) if parameters that come from data name a function or a file that the
    operator's parameters `ours` do not name."""
    for name in _OF_PROGRAMS.keys() & given.keys():
        if _OF_PROGRAMS[name].names_more(given[name], getattr(ours, name)):
            said = "only the operator's configuration may name a file or function. Leave it out here."
            raise config_error(f"sampling_params.{name}", said)


def protected(changes: JsonObject, ours: JsonObject) -> JsonDict:
    """Return `changes` to the parameters `ours`, with all values of the parameters that protect what is sent."""
    kept = {name: ours[name] for name in _PROTECTING.keys() & ours.keys() if ours[name]}
    joined = {name: _PROTECTING[name].joined(its, changes.get(name) or its) for name, its in kept.items()}
    return {**changes, **joined}


Made: TypeAlias = dict[tuple[int, ...], tuple[tuple[object, ...], T]]
"""The cached results of `once`."""


def once(made: Made[T], make: Callable[[], T], *of: object) -> T:
    """Return the result of `make`. It is cached in `made`, and returned again for the same objects in `of`."""
    key = tuple(map(id, of))
    if (known := made.get(key)) is None:
        if len(made) >= MOST_KEPT:  # cleared, because each row may have different parameters
            made.clear()
        known = made[key] = of, make()  # the objects are kept, so that no other objects get the same ids
    return known[1]


def top_choices_of(extra: JsonObject) -> int | None:
    """Return the requested `top_choices`, or None. Raises `PromptmillError` (`invalid_input`) if it is not positive."""
    if (most := extra.get(TOP_CHOICES)) is None or (type(most) is int and most > 0):
        return most
    raise input_error(f"{TOP_CHOICES} is {shape(most)}; send a whole number, at least 1.")


_NEUTRAL: JsonObject = {
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty", "n", "parallel_tool_calls"), (1,)),
    **dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs"), (0,)),
    "top_k": (0, -1),
    "chat_template_kwargs": ({},),
    "logit_bias": ({},),
}
"""Values with which a parameter changes nothing, so an endpoint need not support it. Many programs always send them."""


def required_of(given: JsonObject) -> frozenset[str]:
    """Return the parameters that a backend must not leave out. `given`: the parameters that a request's author set.

    >>> sorted(required_of({"seed": 1, "top_p": 1.0, "user": "me"}))
    ['seed']
    """
    known = given.keys() & (Sampling.model_fields.keys() | BESIDE | PASSED_ON)
    names = {name for name in known if given[name] is not None and given[name] not in _NEUTRAL.get(name, ())}
    return frozenset(names | {"logprobs"} if TOP_CHOICES in names else names)  # `top_choices` needs `logprobs`


def check_left_out(names: Iterable[str], required: Container[str], taker: str) -> None:
    """Raise `PromptmillError` (`unsupported`) if a parameter in `names` is required. `taker` supports none of them.

    The message begins with the name.
    """
    for name in names:
        if name.partition(".")[0] in required:  # also for a part, such as `chat_template_kwargs.enable_thinking`
            raise PromptmillError(Code.UNSUPPORTED, f"{name}: {taker} cannot take it with this model.")


class Account(Protocol):
    """The amount that a budget has reserved for one request. The sender reports each attempt to this object."""

    def sent(self) -> float:
        """Record that a request is sent and may be billed. Return its highest possible cost."""
        ...

    def not_billed(self) -> None:
        """Record that the last request was refused, which costs nothing."""
        ...

    async def reserve_again(self) -> bool:
        """Reserve the cost of another attempt after a failed attempt that may be billed.

        Return False if a budget does not allow it. Then the request fails with the code `budget`, and is sent later.
        """
        ...


EMBEDDINGS = "/embeddings"
"""The path of requests for the embeddings of texts."""


class Shared(NamedTuple):
    """The beginning of a conversation that other requests of the job share, for the provider's prompt cache.

    >>> bool(NOTHING_SHARED)
    False
    """

    characters: int
    """The number of characters in the messages' texts that form the beginning."""
    key: str
    """The digest of the beginning and the model."""
    size: int = 0
    """The number of bytes of the beginning in UTF-8."""

    def __bool__(self) -> bool:
        return self.characters > 0


NOTHING_SHARED = Shared(0, "")
"""Set for a job's request that shares no beginning with other requests: the provider's cache need not store it."""
LEAST_SHARED = 2048
"""The size in bytes of the shortest beginning that a provider caches for any model. It is about 512 tokens."""


class CutText(NamedTuple):
    """The text next to a piece of a long text, which the request about the piece leaves out."""

    at: int
    """The number of the piece among the `texts` of the request's fields."""
    before: str
    """The end of the text before the piece."""
    after: str
    """The beginning of the text after the piece."""


class Fields(NamedTuple):
    """The parts of a row's prompt."""

    parts: tuple[str, ...]
    """The template's texts and the fields' names in turn, a text first. They are the same for all rows of a prompt."""
    texts: tuple[str, ...]
    """The row's text for each field, in the order of the names in `parts`."""
    file: Annotated[str, UNSENT] = ""
    """The path of the file whose text is the field `content`."""
    page: int = 1
    """The page of a PDF on which the text begins. It may be above 1 if the text is a piece of a long text."""
    offset: int = 0
    """The number of characters that precede the text on this page, without the line that begins with `ATTACHED`."""

    cut: Annotated[CutText | None, UNSENT] = None
    """Set if one of the `texts` is a piece of a long text."""

    @property
    def whole(self) -> str:
        """The prompt."""
        pieces = [*self.parts]
        pieces[1::2] = self.texts
        return "".join(pieces)


class FileRow(NamedTuple):
    """A row of a file, with the columns that its prompt does not use."""

    cells: bytes
    """The row's line of JSON; for a table, its cells as a JSON array."""
    header: tuple[str, ...] = ()
    """The columns of the table; `()` if the row is an object."""


class Portion(NamedTuple):
    """The place of one item in a request for several items, and in the reply."""

    name: str
    """The name of the item in the request and the reply."""
    at: int
    """The number of the item among the items, from 0."""
    of: int
    """The number of items."""


class CommonParts(NamedTuple):
    """The parts of a request that many requests have in common."""

    sampling: Sampling
    extra: JsonObject
    form: Form | None

    def with_texts(self, change: Change, *, is_body: bool) -> CommonParts:
        """Return the parts with each text changed. `is_body`: `extra` is the body of a request that is no chat."""
        kind = TextKind.EVIDENCE if is_body else TextKind.INSTRUCTION
        return CommonParts(
            changed(self.sampling, change, TextKind.INSTRUCTION),
            changed(self.extra, change, kind),
            changed(self.form, change, TextKind.INSTRUCTION),
        )


class ChangeOfRow(Protocol):
    """The change of a request's texts, which sees a row's prompt as a whole: a value may begin in one cell and end in
    another."""

    def __call__(self, text: str, kind: TextKind, /) -> str:
        """Return the text to send in place of a text."""
        ...

    def fields(self, fields: Fields, /) -> Fields:
        """Return the parts of a prompt with each text changed; `fields` itself if no text changes."""
        ...


@dataclass(slots=True)
class Request:
    """One conversation to answer. The object is immutable.

    `key`: the caller's key (an index, a row number). Keys may have gaps, and requests for several answers to an item
    (`Sampling.n`) share its key. `extra`: the `extra_params` for the engine or the request body. `attempts`: the number
    of attempts in an earlier run that ended early.
    """

    key: int
    conversation: Conversation
    sampling: Sampling
    extra: JsonObject = field(default_factory=dict)
    attempts: int = 0
    path: Annotated[str, UNSENT] = ""
    """The path of a request that is not a chat, such as `/embeddings`. If it is set, `extra` is the whole body."""
    account: Annotated[Account | None, UNSENT] = None
    """Set if the cost of the request is charged to a budget."""
    choice: int = 0
    """The position of this request among those for several answers to an item. Each answer is stored separately."""
    shared: Annotated[Shared | None, UNSENT] = None
    """Set if the provider caches beginnings of prompts, and the beginning that other requests share is known."""
    question: Annotated[bytes | None, UNSENT] = None
    """Set for a row of a job: the digest of its question, which is equal for rows with the same question."""
    is_part: bool = False
    """Whether this request's answer is merged with others into the row's answer. No check applies to it alone."""
    required: Annotated[frozenset[str], UNSENT] = frozenset()
    """Parameters that the backend must support. Other unsupported parameters are left out, with a warning."""
    members: tuple[Request, ...] = ()
    """The requests that this request answers together; the first is this request. `()` if it answers one item."""
    fields: Fields | None = None
    """The parts of a row's prompt, if it is a plain template with a field; None for other prompts."""
    row: Annotated[FileRow | None, UNSENT] = None
    """The row of a file that the request asks about; None if the request does not ask about such a row."""
    form: Form | None = None
    """The form of the answer to a request with choices or a schema. Steps that ask for another reply keep the form."""
    is_filled: bool = False
    """Whether the prompt was made from a template, so that not all of its words come from the row."""
    state: Annotated[str | None, TextKind.EVIDENCE] = None
    """The evidence of a client's questions as JSON, for a model that decides; None if the client sent only text."""
    portion: Annotated[Portion | None, UNSENT] = None
    """The item's part of a request that several items share, if a batch answers that request."""
    corrections: int = 0
    """The number of added messages at the end, which ask again: each refused answer, and the complaint about it."""

    @property
    def texts(self) -> int:
        """The number of texts in a request for embeddings; 0 in other requests."""
        if self.path != EMBEDDINGS:
            return 0
        given = self.extra.get("input")
        return len(given) if isinstance(given, list) else 1

    @property
    def shared_system(self) -> Shared | None:
        """The system prompt as a beginning that requests with other prompts share, too; None if it is unknown."""
        if not self.shared:
            return self.shared
        messages = itertools.takewhile(lambda message: message.role in SYSTEM_ROLES, self.conversation.messages)
        text = "".join(Conversation((*messages,)).texts)
        written = text.encode("utf-8", "replace")
        if len(text) > self.shared.characters or len(written) < LEAST_SHARED:
            return NOTHING_SHARED
        return Shared(len(text), hashlib.blake2b(written, digest_size=16).hexdigest(), len(written))

    @property
    def has_form(self) -> bool:
        """Whether the answer is JSON or one of several choices, not prose."""
        sampling = self.sampling
        return bool(sampling.response_format or sampling.choices or self.extra.get("response_format"))

    def with_texts(self, change: ChangeOfRow, common: CommonParts | None = None) -> Request:
        """Return the request with each text that may be sent changed; the request itself if no text changes.

        `common`: the changed parts that other requests have in common, if they are known.
        """
        if common is None:
            common = self.common.with_texts(change, is_body=bool(self.path))
        pairs = zip(CommonParts._fields, common, strict=True)
        changes: dict[str, Any] = {name: new for name, new in pairs if new is not getattr(self, name)}
        fields = self.fields
        if fields is not None and (written := change.fields(fields)) is not fields:
            changes["fields"] = written
        turns = self._turns(change, changes.get("fields", fields))
        if any(map(operator.is_not, self.conversation.messages, turns)):
            changes["conversation"] = Conversation(tuple(turns))
        if self.members:
            members = tuple(member.with_texts(change) for member in self.members)
            if any(map(operator.is_not, self.members, members)):
                changes["members"] = members
        kind: type = type(self)
        for name in _further_texts(kind):
            if (new := changed(old := getattr(self, name), change, TextKind.EVIDENCE)) is not old:
                changes[name] = new
        return self.changed(**changes) if changes else self

    @property
    def common(self) -> CommonParts:
        """The parts that other requests have in common."""
        return CommonParts(self.sampling, self.extra, self.form)

    def _turns(self, change: Change, written: Fields | None) -> list[Message]:
        """Return the turns of the conversation with each text changed. `written`: the changed `fields`."""
        messages, fields, turns = self.conversation.messages, self.fields, list[Message]()
        added = len(messages) - self.corrections
        for at, message in enumerate(messages):
            kind = TextKind.EVIDENCE
            if at >= added:
                kind = TextKind.CORRECTION
            elif self.is_filled and message.role in SYSTEM_ROLES:
                kind = TextKind.INSTRUCTION
            text, extra = message.content, message.extra
            if type(text) is not str or not _HAS_TWO_TEXTS:
                turns.append(changed(message, change, kind))
                continue
            if at == added - 1 and fields is not None and written is not None:
                content = _with_row(text, fields, written, change)
            else:
                content = change(text, kind)
            if extra:
                extra = changed(extra, change, kind)
            is_same = content is text and extra is message.extra
            turns.append(message if is_same else Message(message.role, content, extra))
        return turns

    def changed(self, **changes: Any) -> Request:
        """Return a copy of the request with `changes`."""
        copied = Request(*_VALUES_OF(self))  # takes a third of the time of `dataclasses.replace`
        for name, value in changes.items():
            setattr(copied, name, value)
        return copied


_HAS_TWO_TEXTS = texts_of(Message) == (("content", None), ("extra", None))
"""Whether a message has no further text than those that `_turns` knows. Its short way takes a third of the time."""


def _with_row(content: str, fields: Fields, written: Fields, change: Change) -> str:
    """Return the message of a row with each text changed. `written`: the row's changed fields. A piece of a long text
    is in a message with further words."""
    if fields.texts and content == fields.whole:
        return content if written is fields else written.whole
    if fields.cut is None:
        return change(content, TextKind.EVIDENCE)
    text, new = fields.texts[fields.cut.at], written.texts[fields.cut.at]
    before, found, after = content.rpartition(text)
    if not found:
        return change(content, TextKind.EVIDENCE)
    pieces = change(before, TextKind.EVIDENCE), new, change(after, TextKind.EVIDENCE)
    return content if pieces == (before, text, after) else "".join(pieces)


_VALUES_OF = attrgetter(*(each.name for each in fields(Request)))


@functools.cache
def _further_texts(kind: type) -> Sequence[str]:
    """Return the fields with texts of a request that no other method of the walk knows."""
    known = {*CommonParts._fields, "conversation", "fields", "members"}
    return [name for name, _ in texts_of(kind) or () if name not in known]
