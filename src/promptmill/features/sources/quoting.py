"""The steps that ask for a quote with each value, look it up in the row's text, and find its boxes in a row's PDF.

If the text does not contain a quote, the value is kept, and its source states that the quote is missing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from promptmill.answers.reasoning import split_marked
from promptmill.backends.protocol import Call, Completion, Failure, Outcome
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_SEARCHED, PLACE
from promptmill.core.errors import Named, PromptmillError, input_error
from promptmill.core.request import Conversation, FilePart, Made, Message, Request, TextPart, once
from promptmill.core.sources import ValueSource, changed, leaves, with_page
from promptmill.features.sources.boxes import Boxes, PdfText
from promptmill.features.sources.paragraphs import CONTENT, paragraphs_of
from promptmill.features.sources.pdf_text import pdf_text
from promptmill.features.sources.quoted_form import NOTE, QuotedForm
from promptmill.features.sources.searched_text import Text
from promptmill.images import pdf
from promptmill.images.load import ImageRules
from promptmill.steps.checked import as_text
from promptmill.steps.step import Loading, Place, Sent, Step
from promptmill.system.call_files import FileRule

_SOON = 1 << 19
"""The event loop itself looks up quotes if the product of the lengths of text and reply is at most this. The look-up
then takes up to 0.1 s, in the case of quotes of one letter."""
_AT_ONCE = 2  # threads for long texts: two, so that other work has threads left and a second answer need not wait


class QuotedAnswers(Step):
    """Requests a quote for each value. Returns the answer without the quotes, together with its sources."""

    place, wanted_by = Place.FORMED, ("quote",)

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return a function that converts a request to one for an answer with quotes. The function raises
        `PromptmillError` (`invalid_input`)."""
        del config, by_batch
        step = cls()
        return lambda request: Sent(_asking(request, step._form(request)))

    def __init__(self, rule: FileRule | None = None) -> None:
        """`rule`: the rule for PDFs that requests contain as files."""
        self._rule = rule or FileRule()
        self._forms: Made[QuotedForm] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    async def of(cls, loading: Loading) -> QuotedAnswers:
        """Return the step."""
        return cls(loading.config.file_rule)

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request, with a quote for each value. If the request has no text from the row, ask for no quotes."""
        if request.fields is not None and not (request.fields.texts or request.conversation.file_kinds):
            return self.following(request, call)
        return self._quoted(request, call)

    async def _quoted(self, request: Request, call: Call) -> Outcome:
        try:
            form = self._form(request)
            if request.fields is None and request.is_filled and not request.conversation.file_kinds:
                raise _no_fields()
        except PromptmillError as error:
            return Failure(error, request.attempts, concerns_all=True)
        try:
            documents = [(part, Text(await self._text(part))) for part in _pdfs_of(request)]
        except PromptmillError as error:
            return Failure(error, request.attempts)
        outcome = await self.following(_asking(request, form), call)
        if isinstance(outcome, Completion):
            outcome = as_text(outcome, request)
        if not (reply := _reply_of(outcome)):
            return outcome
        texts = RowTexts.of(request, [text for _, text in documents])
        if len(reply) * texts.length > _SOON:
            async with self._turns:
                try:
                    outcome = await asyncio.to_thread(_with_sources, outcome, request, form, texts)
                finally:
                    texts.stop()
        else:
            outcome = _with_sources(outcome, request, form, texts)
        for part, text in documents:  # boxes are cached with the answer: an equal request has an equal file
            outcome = await self._boxes.added(outcome, PdfText(text.text), part, call)
        return outcome

    async def _text(self, part: FilePart) -> str:
        """Return the text of a PDF. Raises `PromptmillError` (`invalid_input`) if it has none."""
        return await asyncio.to_thread(pdf_text, part, ImageRules(self._rule))

    @functools.cached_property
    def _boxes(self) -> Boxes:
        return Boxes(self._rule)

    def _form(self, request: Request) -> QuotedForm:
        return once(self._forms, lambda: QuotedForm.of(request.sampling), request.sampling)


class LocatedQuotes(Step):
    """Adds the places of quotes to the sources of an answer about the text of a file: boxes in a PDF, headings and
    paragraphs in a Word document or a web page.

    It runs outside of the cache: two files with the same text, which share an answer, may have the words at different
    places. It also sees the requests about the pieces of a long text. Their fields name the page where a piece begins;
    a piece of a document is not placed here, but by the plan that joins the pieces.
    """

    place, wanted_by = Place.LOCATED, ("quote",)

    def __init__(self, rule: FileRule | None = None) -> None:
        """`rule`: the rule for the files that are read."""
        self._rule = rule or FileRule()
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @functools.cached_property
    def _boxes(self) -> Boxes:
        return Boxes(self._rule)

    @classmethod
    async def of(cls, loading: Loading) -> LocatedQuotes:
        """Return the step."""
        return cls(loading.config.file_rule)

    def answer(self, request: Request, call: Call) -> Awaitable[Outcome]:
        """Answer a request. A request that is not about the text of a file is passed on."""
        fields = request.fields
        if fields is None or not fields.file or CONTENT not in fields.parts[1::2]:
            return self.following(request, call)
        text = fields.texts[fields.parts[1::2].index(CONTENT)]
        if fields.file.lower().endswith(pdf.SUFFIX):
            return self._located(request, call, PdfText(text, fields.page, fields.offset, CONTENT), fields.file)
        return self.following(request, call) if request.is_part else self._placed(request, call, text, fields.file)

    async def _located(self, request: Request, call: Call, text: PdfText, file: str) -> Outcome:
        outcome = await self.following(request, call)
        return await self._boxes.added(outcome, text, FilePart(file, "pdf"), call)

    async def _placed(self, request: Request, call: Call, text: str, file: str) -> Outcome:
        outcome = await self.following(request, call)
        if not any(is_in_content(source) for _, source in leaves(outcome.sources)):
            return outcome
        async with self._turns:
            paragraphs = await asyncio.to_thread(paragraphs_of, text, file, self._rule)
        if paragraphs is None:
            return outcome

        def placed(source: ValueSource) -> ValueSource:
            return paragraphs.placed(source) if is_in_content(source) else source

        return replace(outcome, sources=changed(outcome.sources, placed))


def is_in_content(source: ValueSource) -> bool:
    """Return whether the place of a source is in the text of the row's file."""
    return "start" in source and source.get("column") == CONTENT


class _Column(NamedTuple):
    name: str
    """The name of the column with the text; `""` if the text is not from a column."""
    text: Text


class RowTexts:
    """The texts of a row in which quotes are looked up."""

    def __init__(self, columns: list[_Column]) -> None:
        self._columns = columns
        self.length = sum(len(column.text.text) for column in columns)
        self._left = MOST_SEARCHED
        self._is_stopped = False
        self._ends: dict[tuple[str, str], int] = {}
        """The end of the last place that was found, by column and quote. The search for an equal quote begins there."""

    @classmethod
    def of(cls, request: Request, documents: Sequence[Text] = ()) -> RowTexts:
        """Return the texts of a request: its fields or, if it has none, the messages of the user and of tools, except
        complaints about answers. `documents`: the texts of the request's PDFs."""
        more = [_Column("", document) for document in documents]
        if request.fields is not None:
            named = dict(zip(request.fields.parts[1::2], request.fields.texts, strict=True))
            return cls([*(_Column(name, Text(text)) for name, text in named.items()), *more])
        if request.is_filled:  # the prompt's own words are no text of the row
            return cls(more)
        asked, _ = _turns(request)
        turns = Conversation(tuple(one for one in asked if one.role in {"user", "tool"}))
        return cls([*(_Column("", Text(text)) for text in turns.texts), *more])

    def stop(self) -> None:
        """Stop the search for quotes, because the client has left. May be called from any thread."""
        self._is_stopped = True

    def source(self, quote: str, value: Any) -> ValueSource | None:
        """Return the source of a value with this quote; None for a null value."""
        if value is None or value in ("", [], {}):
            return None
        is_searched = self._left > 0 and not self._is_stopped and quote.strip()
        for column in self._columns if is_searched else ():
            whole, known, before = column.text.text, (column.name, quote), column.text.compared
            start = self._ends.get(known, 0)
            span = column.text.find(quote, start) or (column.text.find(quote) if start else None)
            self._left -= len(whole) if span is None else max(0, span.end - start)
            self._left -= PLACE * (column.text.compared - before)
            if span is not None:
                self._ends[known] = span.end
                found = ValueSource(quote=whole[span.start : span.end], start=span.start, end=span.end)
                if column.name:
                    found["column"] = column.name
                return with_page(found, whole)
        return ValueSource(quote=quote, is_missing=True)


def _asking(request: Request, form: QuotedForm) -> Request:
    """Return the request for an answer with quotes. Its last message before any correction explains quotes."""
    (*before, last), corrections = _turns(request)
    note = f"\n\n{NOTE}"
    content = (*last.content, TextPart(note)) if isinstance(last.content, tuple) else (last.content or "") + note
    fields = request.fields
    if fields is not None:
        *parts, end = fields.parts
        fields = fields._replace(parts=(*parts, end + note))
    conversation = Conversation((*before, Message(last.role, content, last.extra), *corrections))
    return request.changed(conversation=conversation, sampling=form.sampling, fields=fields)


def _pdfs_of(request: Request) -> list[FilePart]:
    """Return the PDFs of a request. Raises `PromptmillError` (`invalid_input`) for images and recordings."""
    parts = request.conversation.sourced
    pdfs = [part for part in parts if isinstance(part, FilePart) and part.kind == "pdf"]
    if len(pdfs) < len(parts):
        what = "A recording" if any(part.kind == "audio" for part in parts) else "An image"
        raise input_error(f"{what} has no text in which a quote could be looked up.")
    return pdfs


def _turns(request: Request) -> tuple[Sequence[Message], Sequence[Message]]:
    """Return the messages of a request before any correction, and the corrections, which ask again."""
    messages = request.conversation.messages
    end = len(messages) - request.corrections
    return messages[:end], messages[end:]


def _reply_of(outcome: Outcome) -> str:
    """Return the text of an answer, or the partial answer of a failure."""
    return outcome.part if isinstance(outcome, Failure) else outcome.text


def _with_sources(outcome: Outcome, request: Request, form: QuotedForm, texts: RowTexts) -> Outcome:
    """Return the answer with its sources instead of its quotes. A reply without JSON is unchanged."""
    reply = _reply_of(outcome)
    own = split_marked(reply)[1] if request.sampling.reasoning == "inline" else reply
    if (found := form.answer(own, texts.source)) is None:
        if isinstance(outcome, Failure) or not form.is_choice:
            return outcome
        return replace(outcome, sources=texts.source("", own), logprobs=None)
    text, sources = found
    text = reply[: len(reply) - len(own)] + text
    if isinstance(outcome, Failure):
        return replace(outcome, part=text, sources=sources)
    changes: dict[str, Any] = {"logprobs": None} if form.is_choice else {}  # log probabilities would include the quote
    return replace(outcome, text=text, reply=reply, sources=sources, **changes)


def _no_fields() -> PromptmillError:
    return input_error(
        Named("quote"),
        " looks its quotes up in the columns of a prompt with plain places alone, such as {{text}}: make a column of "
        "what an expression computes.",
    )
