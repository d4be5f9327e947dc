"""The requests of one call on their way into an engine, as frames, and the outcomes that come back."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from promptmill.answers.reasoning import unanswered
from promptmill.backends.protocol import FixedShare, Request
from promptmill.core.conversation import ImagePart, Message, TextPart, check_encodable
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.core.outcome import Completion, Failure, Outcome, Usage
from promptmill.images.load import ImageCache, ImageFile, ImageRules, WebImages
from promptmill.system import frames
from promptmill.system.frames import Frame

_READ_AT_ONCE = 8  # items of a call whose images are in our memory, on their way from the disk into the pipe


_LONGEST_ITEM = 256 << 20  # bytes


class EngineShare(FixedShare):
    """A call's share of an engine, which shares its batch out by itself."""

    def __init__(self, most: int, run: int, submissions: Submissions) -> None:
        """`run` is the number of the call on the wire."""
        super().__init__(most)
        self.run = run
        self.submissions = submissions
        self.writing = asyncio.Lock()
        self.reading = asyncio.Semaphore(_READ_AT_ONCE)
        self.abandoned = False
        """Whether items were submitted whose outcome is not wanted any more."""


def outcome_of(message: Frame, request: Request) -> Outcome:
    """Return the outcome that an engine sent for `request`."""
    attempts = request.attempts + message.get("attempts", 1)
    if (error := message.get("error")) is not None:
        return Failure(frames.unpacked_error(error), attempts, message.get("latency_s", 0.0))
    prompt_tokens, completion_tokens = message["usage"]
    completion = Completion(
        message["text"],
        message["finish_reason"],
        Usage(prompt_tokens, completion_tokens),
        message["reasoning"],
        tuple(message.get("tool_calls", ())),
        attempts,
        message["latency_s"],
        message.get("logprobs"),
        message.get("details"),
    )
    if problem := unanswered(completion):
        return Failure(problem, attempts, completion.latency_s, completion.usage)
    return completion


class Submissions:
    """The requests of one run, on their way into the pipe."""

    def __init__(self, run: int, rules: ImageRules, web: WebImages, *, takes_images: bool, live: bool = False) -> None:
        """`live`: answers are wanted while they grow."""
        self._run = run
        self._live = live
        self._takes_images = takes_images
        self._image_cache = ImageCache(rules, _json_base64, web.fetch)

    async def frame(self, number: int, request: Request) -> bytes:
        """Return the `submit` frame (see `channel`) of a request.

        Raises `PromptmillError` (`unsupported`, `invalid_input`, `invalid_image`, `request_too_large`).
        """
        if request.path:
            return self._other(number, request)
        conversation = request.conversation
        images = conversation.images
        if images and not self._takes_images:
            raise PromptmillError(
                Code.UNSUPPORTED,
                "The prompt comes with images, and this model reads only text.",
                "Load a model that reads images, or choose another backend.",
            )
        if conversation.has_audio:
            raise PromptmillError(
                Code.UNSUPPORTED,
                "The prompt comes with audio, which engines on this machine do not read.",
                "Leave it out, or choose the openai backend and a model that listens.",
            )
        check_encodable(conversation)
        read = [await self._image_cache.read(image.source) for image in images]
        _check_size(sum(map(len, read)))  # before they are copied into a frame
        return _packed(
            {
                "type": "submit",
                "run": self._run,
                "id": number,
                "messages": _messages(conversation.messages),
                "sampling": request.sampling.given(),
                "extra": dict(request.extra),
                **({"live": True} if self._live else {}),
                **({"images": [orjson.Fragment(image) for image in read]} if read else {}),
            }
        )

    def _other(self, number: int, request: Request) -> bytes:
        """Return the frame of a request that is none for a chat."""
        body = dict(request.extra)
        return _packed({"type": "submit", "run": self._run, "id": number, "path": request.path, "body": body})

    def close(self) -> None:
        """Stop what is still being read or fetched."""
        self._image_cache.close()


def _check_size(size: int) -> None:
    if size > _LONGEST_ITEM:
        raise PromptmillError(Code.REQUEST_TOO_LARGE, f"The item takes {size >> 20} MiB, more than any model reads.")


def _packed(message: frames.Frame) -> bytes:
    try:
        frame = frames.packed(message)
    except (TypeError, ValueError, RecursionError):
        raise input_error(
            "The item's stop strings, message fields or extra parameters hold what JSON cannot: half a surrogate "
            "pair, a number above 64 bits, or too deep a nesting; remove it."
        ) from None
    _check_size(len(frame))
    return frame


def _messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Return the turns as OpenAI messages whose images are numbers, counted over all of them."""
    index = 0
    turns = []
    for message in messages:
        content: object = message.content
        if isinstance(content, tuple):
            parts: list[dict[str, Any]] = []
            for part in content:
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                elif isinstance(part, ImagePart):
                    parts.append({"type": "image", "index": index})
                    index += 1
            content = parts
        turns.append({**(message.extra or {}), "role": message.role, "content": content})
    return turns


def _json_base64(image: ImageFile) -> bytes:
    import pybase64

    return b'"%b"' % pybase64.b64encode(image.data)
