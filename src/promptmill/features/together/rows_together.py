"""The step that sends several rows in one request, and gives each row its own answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Self

import orjson

from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion
from promptmill.config.model_config import OTHER_LIMIT, TOKEN_LIMITS, ModelConfig, numbers_of
from promptmill.core.bounds import MOST_KEPT
from promptmill.core.request import SYSTEM_ROLES, TOP_CHOICES, Conversation, Fields, Message, Portion, Request, Sampling
from promptmill.features.packs.packed_rows import Bounds, Gathering, ReplyPart
from promptmill.features.together.parameters import Together
from promptmill.features.together.record_form import RecordForm, fields_of
from promptmill.jobs.store.records import SLOT
from promptmill.steps.step import Loading, Sent, path_of

_LONGEST_ROW = 8_000
"""The most characters of a row's fields. For a longer row, shared instructions would save next to nothing."""
_LONGEST = 32_000
"""The most characters of all records of a request: about 8,000 tokens, a quarter of most models' windows."""
_SIGNS = 16
"""This many characters of words take as many tokens as the JSON around a field."""
_CHARACTERS = 3
"""The smallest number of characters per token, except in texts that consist mostly of rare signs."""
_CHANCES = frozenset({"logprobs", "top_logprobs", TOP_CHOICES})
"""Parameters that a request for several rows leaves out, because they would apply to all answers together."""
_ALONE = frozenset(
    {"tools", "tool_choice", "functions", "function_call", "stop", "n", "best_of", "response_format"}
    | {"prediction", "modalities", "audio", "guided_json", "guided_choice", "structured_outputs", "stream"}
)
"""Parameters in `extra_params` whose effect cannot be divided among rows."""


class RowsTogether(Gathering):
    """Sends up to `together` rows in one request. Rows can share a request if they differ only in their fields."""

    wanted_by = ("together", "has_portions")
    packs_batches = True

    @classmethod
    async def of(cls, loading: Loading) -> Self | None:
        """Return the step for a model that writes; see `EvidenceTogether` for deciding models."""
        return None if registry.decides(loading.config) else cls(loading)

    @classmethod
    def sending(cls, config: ModelConfig, *, by_batch: bool) -> Callable[[Request], Sent]:
        """Return a function that converts a row to its part of a request that asks about as many rows as possible."""
        del by_batch  # a line of a batch holds as many rows as a live request
        return Sent if registry.decides(config) else cls(Loading(config, None, is_shared=False))._sent_for

    def __init__(self, loading: Loading) -> None:
        super().__init__(loading)
        self._is_object = registry.keeps_schemas(loading.config)
        window = getattr(loading.config.block, "max_model_len", None)
        self._size = min(_LONGEST, window // 4 * _CHARACTERS) if window else _LONGEST
        self._forms: dict[bytes, RecordForm | str] = {}
        """The form for each set of parameters, which rows may set, or the reason why such rows are sent alone."""
        self._last: tuple[Sampling | None, bytes, RecordForm | str] = None, b"", ""

    def kind(self, request: Request, call: Call) -> Hashable | None:
        """Return the key of a row; None if the row is sent alone. Rows with equal keys may share a request."""
        if call.facts.keep_raw or call.preview is not None or _was_refused(request):
            return None
        form = self._form(request.sampling)
        why = form if isinstance(form, str) else _why_alone(request)
        if why:
            call.warn(f"Rows with {why} are sent alone, not together.")
        if why or isinstance(form, str):
            return None
        extra = orjson.dumps(request.extra, option=orjson.OPT_SORT_KEYS) if request.extra else b""
        before = tuple((message.role, message.content) for message in request.conversation.messages[:-1])
        _, wanted, _ = self._last  # the parameters as bytes: a form may be made anew for equal parameters
        slot, choice = request.key // SLOT, request.choice  # a request never asks for two answers to the same row
        return slot, choice, _fields(request).parts, before, wanted, extra, request.required

    def bounds(self, request: Request) -> Bounds:
        """Return the bounds of a request that asks about several rows with the same parameters as `request`."""
        wanted = request.sampling
        assert isinstance(wanted, Together)
        return Bounds(wanted.together or 1, self._size)

    def size(self, request: Request) -> int:
        """Return the number of characters in a row's record."""
        return sum(map(len, _fields(request).texts)) + 16

    def named(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Give several rows the names of their records."""
        form, count = self._form(requests[0].sampling), len(requests)
        assert not isinstance(form, str)
        seeds = (f"{one.key} {one.choice} {_fields(one).texts}" for one in requests)
        names = form.names([seed.encode("utf-8", "surrogatepass") for seed in seeds])
        return [
            one.changed(portion=Portion(name, at, count))
            for at, (name, one) in enumerate(zip(names, requests, strict=True))
        ]

    def joined(self, requests: Sequence[Request]) -> Request:
        """Return the request for several rows; for a single row, its own request."""
        first, form = requests[0], self._form(requests[0].sampling)
        if len(requests) == 1 or isinstance(form, str):
            return first
        # Sort by name, so that rows that are sent again, for example for a vote, have another order.
        rows = sorted(zip(_names(requests), map(_fields, requests), strict=True), key=_place)
        *before, last = first.conversation.messages
        text = form.text([fields for _, fields in rows], [name for name, _ in rows])
        return first.changed(
            conversation=Conversation((*before, Message(last.role, text))),
            sampling=form.sampling_for(len(requests)),
            extra={name: value for name, value in first.extra.items() if name not in _CHANCES},
            shared=first.shared_system,
            question=None,
            fields=None,
        )

    def divided(self, requests: Sequence[Request], reply: Completion) -> Sequence[ReplyPart]:
        """Divide a reply into the answers to the rows."""
        form = self._form(requests[0].sampling)
        if len(requests) == 1 or isinstance(form, str):
            return [ReplyPart(reply)]
        answers = form.answers(reply.text, _names(requests), is_cut=reply.finish_reason == "length")
        common = max(0, 4 * reply.usage.prompt_tokens - sum(map(self.size, requests))) // len(requests)
        return [
            ReplyPart(
                None if answer is None else Completion(answer, "stop"),
                common + self.size(one),
                len(answer or "") + 4 * form.around,
            )
            for one, answer in zip(requests, answers, strict=True)
        ]

    def read(self, request: Request, name: str, reply: Completion) -> ReplyPart:
        """Return the answer to one row from a reply that arrived by batch."""
        form = self._form(request.sampling)
        answer = (
            None
            if isinstance(form, str)
            else form.answers(reply.text, [name], is_cut=reply.finish_reason == "length")[0]
        )
        return ReplyPart(None if answer is None else Completion(answer, "stop"))

    def _sent_for(self, request: Request) -> Sent:
        form = self._form(request.sampling)
        if isinstance(form, str) or _why_alone(request):
            return Sent(request)
        bounds = self.bounds(request)
        count = max(1, min(bounds.items, bounds.size // self.size(request)))
        if count == 1:
            return Sent(request)
        rest, last = request.conversation.messages[:-1], request.conversation.messages[-1]
        fields = _fields(request)
        whole = form.text([fields], ["r1"])
        names = 1 + len(fields.texts)
        record = len("".join(fields.texts)) + 8 * names
        common = len(whole) - record + sum(len(str(one.content)) for one in rest)
        text = " " * (common // count) + "".join(fields.texts) + " " * (_SIGNS * names)
        most = form.sampling_for(count).max_tokens
        sampling = request.sampling.model_copy(
            # a refused answer is requested again, in a request for its row alone
            update={"max_tokens": None if most is None else -(-most // count), "choices": None, "response_format": None}
        )
        part = request.changed(
            conversation=Conversation((Message(last.role, text),)), sampling=sampling, shared=None, members=(request,)
        )
        return Sent(part, 1 / count, alone=request, around=form.around)

    def _form(self, sampling: Sampling) -> RecordForm | str:
        if sampling is not self._last[0]:
            if (key := orjson.dumps(sampling.given())) not in self._forms:
                if len(self._forms) >= MOST_KEPT:
                    self._forms.clear()
                is_chat = not path_of(sampling)
                self._forms[key] = RecordForm.of(sampling, is_object=self._is_object) if is_chat else ""
            self._last = sampling, key, self._forms[key]
        return self._last[2]


def _fields(request: Request) -> Fields:
    return fields_of(request.fields, str(request.conversation.messages[-1].content))


def _names(requests: Sequence[Request]) -> list[str]:
    return [one.portion.name for one in requests if one.portion is not None]


def _place(named: tuple[str, Fields]) -> tuple[int, str]:
    name = named[0]
    return len(name), name


def _was_refused(request: Request) -> bool:
    """Return whether the request asks again after a refused answer. It then contains that answer and the complaint."""
    return any(message.role == "assistant" for message in request.conversation.messages)


def _why_alone(request: Request) -> str:
    """Return the reason why a row cannot share a request; `""` if the row can share one."""
    if request.path:
        return "a request that is no chat"
    if request.is_part:
        return "pieces"
    *before, last = request.conversation.messages
    if last.role != "user" or any(message.role not in SYSTEM_ROLES for message in before):
        return "several messages"
    if any(not isinstance(message.content, str) or message.extra for message in (*before, last)):
        return "images, audio or other parts"
    if request.required & _CHANCES:
        return "`logprobs`"
    extra = request.extra
    if extra and (set_ := sorted(extra.keys() & (_ALONE | {*TOKEN_LIMITS}))):
        return f"`{set_[0]}`"
    if extra and (limit := next((name for name, _ in numbers_of(extra, OTHER_LIMIT)), None)):
        return f"`{limit}`"
    if sum(map(len, _fields(request).texts)) > _LONGEST_ROW:
        return f"more than {_LONGEST_ROW:,} characters"
    return ""
