"""Counts the tokens of PDFs and recordings as each provider publishes them.

a PDF          its pages, and the bytes of their text      images/pdf.py, in its child process
a recording    its seconds                                 lengths.py, in a child process
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from promptmill.backends import registry
from promptmill.config.model_config import ModelConfig, named_models
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import Conversation, FilePart, FileTokens, Message, Request
from promptmill.features.file_costs import lengths
from promptmill.images import pdf
from promptmill.images.load import ImageRules, is_web, read_file
from promptmill.steps.costs import MINI, PER_IMAGE, PER_IMAGE_OF_MINI

_PAGES = "promptmill.features.file_costs.tokens:pages"
_AROUND_PAGE = 64  # for the words with which an endpoint may separate pages
_BYTES_PER_TOKEN = 4  # estimated for English text; less accurate for other scripts


class _Page(NamedTuple):
    """The tokens of a page of a PDF, in addition to its text."""

    likely: int
    most: int | None
    """None for the most tokens of any image."""
    counts_text: bool = True
    """Whether the text of the page is counted, too."""


# Tokens of a page, by provider. Third parties quoted these pages until November 2026. OpenAI reads the text and an
# image of each page (developers.openai.com/api/docs/guides/file-inputs), and so does Claude, where an image has 1,568
# or 4,784 tokens at most (platform.claude.com/docs/en/build-with-claude/pdf-support and …/vision). OpenAI does not
# state the size of its images: as an image of A4, a page has 1,105 tokens with gpt-4o.
_OPENAI = _Page(1_105, None)
_OF_PAGES: Mapping[str, _Page] = MappingProxyType(
    {"openai": _OPENAI, "azure": _OPENAI, "anthropic": _Page(1_568, 4_784)}
)
# Gemini 1 and 2 count 258 tokens for a page (ai.google.dev/gemini-api/docs/document-processing), later models 280, 560
# (usual) or 1,120 by `mediaResolution` (…/media-resolution), where images have 2,240 at most; the text is free.
_GEMINI_2, _GEMINI = _Page(258, 2_304, counts_text=False), _Page(560, 2_304, counts_text=False)
_EARLY_GEMINI = re.compile(r"gemini-[12]\b")
# OpenAI: developers.openai.com/api/docs/guides/realtime-costs; Gemini: ai.google.dev/gemini-api/docs/audio
_OF_SECONDS: Mapping[str, int] = MappingProxyType({"openai": 10, "azure": 10, "google": 32})
_AROUND_RECORDING = 16


def measured(request: Request, config: ModelConfig, *, is_audio_priced: bool) -> Request:
    """Return the request with the tokens of each file. Blocks. `is_audio_priced`: whether audio has a known price."""
    rules = ImageRules.of(config.file_rule, config.settings.max_image_pixels, limits=registry.file_limits(config))

    def with_tokens(part: Any) -> Any:
        if not isinstance(part, FilePart):
            return part
        try:
            return replace(part, tokens=_tokens(part, request, config, rules, is_audio_priced=is_audio_priced))
        except PromptmillError as error:
            return replace(part, tokens=FileTokens(most=_unbounded(part, error)))

    def of_message(message: Message) -> Message:
        content = message.content
        return replace(message, content=tuple(map(with_tokens, content))) if isinstance(content, tuple) else message

    return request.changed(conversation=Conversation(tuple(map(of_message, request.conversation.messages))))


def _unbounded(part: FilePart, error: PromptmillError) -> tuple[str | Named, ...]:
    """Return the words of a budget's error about a file whose tokens cannot be known because of `error`."""
    noun, why = "PDF" if part.kind == "pdf" else "recording", str(error).rstrip(".")
    text = ("Send its text (", Named("pdf", "text"), ")") if part.kind == "pdf" else ("Send a transcript",)
    return f"`max_cost` cannot bound the cost of the {noun}: {why}. ", *text, ", or leave `max_cost` out."


def _tokens(
    part: FilePart, request: Request, config: ModelConfig, rules: ImageRules, *, is_audio_priced: bool
) -> FileTokens:
    """Return the tokens of a file. Raises `PromptmillError` if they cannot be known."""
    provider = registry.known_provider(config)
    if is_web(part.source):
        raise input_error("The length of a file is not known before it is downloaded.")
    if part.kind == "audio":
        rate = _OF_SECONDS.get(provider)
        if rate is None:
            raise input_error(
                f"No number of tokens is published for a second of audio at {provider or 'this endpoint'}."
            )
        if not is_audio_priced:
            raise input_error("The price of audio is not known; `audio` in `price` gives it.")
        likely, most = read_file(part, rules, lengths.READER.seconds)
        return FileTokens(math.ceil(likely * rate), math.ceil(most * rate) + _AROUND_RECORDING)
    early = _EARLY_GEMINI.search(config.model)
    page = (_GEMINI_2 if early else _GEMINI) if provider == "google" else _OF_PAGES.get(provider)
    if page is None:
        raise input_error(f"No number of tokens is published for a page of a PDF at {provider or 'this endpoint'}.")

    def read(file: BinaryIO, name: str) -> Mapping[str, int]:
        try:
            return pdf.READER.asked(file, _PAGES, {"text": page.counts_text})
        except pdf.PdfError as error:
            raise input_error(f"{name} {error}.") from None

    found = read_file(part, rules, read)
    is_mini = any(MINI in name for name in (config.model, *named_models(request.extra)))
    image = page.most or (PER_IMAGE_OF_MINI if is_mini else PER_IMAGE)
    likely = found["pages"] * page.likely + found["bytes"] // _BYTES_PER_TOKEN
    return FileTokens(likely, found["pages"] * (image + _AROUND_PAGE) + found["bytes"])


def pages(document: Any, question: Mapping[str, Any]) -> dict[str, int]:
    """In the child process: return the number of a document's pages, and the bytes of their text if `text` is set. Text
    in hidden layers and in fonts without letters counts, because a provider may read it."""
    size = 0
    for at in range(len(document) if question["text"] else 0):
        page = document[at]
        layer = page.get_textpage()
        lines, _ = pdf.annotated(page)
        size += sum(len(text.encode("utf-8", "replace")) for text in (layer.get_text_range(), *lines))
        layer.close()
        page.close()
    return {"pages": len(document), "bytes": size}
