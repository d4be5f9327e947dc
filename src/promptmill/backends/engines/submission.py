"""From a request to the frame that submits it to an engine: checked, its images read and spliced in as bytes."""

from __future__ import annotations

from typing import Any

import orjson

from promptmill.backends.protocol import Request
from promptmill.core.conversation import ImagePart, Message, TextPart, check_encodable
from promptmill.core.errors import Code, PromptmillError, input_error
from promptmill.images.cache import ImageCache
from promptmill.images.load import ImageFile, ImageRules
from promptmill.images.web import WebImages
from promptmill.system import frames

_LONGEST_ITEM = 256 << 20  # bytes


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
