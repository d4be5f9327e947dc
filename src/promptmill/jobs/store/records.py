"""Records: the form in which a job's database stores the outcomes of rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from promptmill.backends.protocol import FURTHER_TOKENS, Completion, Failure, Outcome, Usage, by_question
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.values import JsonDict, JsonObject
from promptmill.core.wording import mended

SLOT = 1 << 40
"""The distance between the keys of a row's answers in consecutive slots. No input has as many rows."""

PERSON = -1
"""The settings id in the record of a label that a person gave. No other settings have this id."""
A_PERSON = "person"
"""The name that outputs show for a person who gave a label."""


class Provenance(NamedTuple):
    """Values that a round stores in each of its records."""

    settings: int = 0
    round: int = 0
    changed: Sequence[str] = ()
    """The settings that have changed since the job's first run."""
    model: str = ""
    """The model that each record names; `""` if records name no model. It is the model that answered instead of the
    target's model or, if rows get answers of several models, the target's model itself."""


FIRST = Provenance()
_KEY_DIGITS = 12


SCORES = "scores"
"""The name of the optional field with the expected level of each scale, computed from the probabilities of levels."""


class Record(NamedTuple):
    """The columns of table `answer`, in order. `code` is None for an answer."""

    key: int
    """The number of the row, plus `SLOT` times the index of the slot."""
    attempts: int
    """See `protocol.Completion.attempts`."""
    latency_s: float
    prompt_tokens: int
    completion_tokens: int
    code: str | None
    retryable: int
    finish_reason: str | None
    text: str
    """The answer, or the message of the failure."""
    reasoning: str | None
    more: str | None
    """Optional fields as JSON: `tool_calls`, `logprobs`, `came`, …; for a failure, `response`, `part`, …."""
    asked: bytes | None
    """The digest of the question (see `row_lines.digest`), by which a row that has moved gets its answer again; None if
    the row has no question."""
    checksum: int
    """The checksum of the columns `attempts` to `more`, and of `vector`."""
    settings: int
    """The id of the settings with which the answer was made."""
    round: int
    """The id of the round that made the record."""
    vector: bytes | None
    """The vector of the row's text, see `backends.vectors`, if the answer is a vector."""

    @property
    def row(self) -> int:
        """The number of the record's row."""
        return self.key % SLOT

    @property
    def slot(self) -> int:
        """The index of the answer among the answers to its row: with two models, 0 for the first model and 1 for the
        second."""
        return self.key // SLOT

    @property
    def question_key(self) -> str:
        """The first digits of the question's digest, which a person's label names; `""` if there is no question."""
        return "" if self.asked is None else self.asked.hex()[:_KEY_DIGITS]

    @property
    def is_sound(self) -> bool:
        """Whether the outcome matches its checksum."""
        try:
            # The checksum leaves out the key, because an answer may move to another row with the same question.
            return self.checksum == checksum(self[1:11], self.vector)
        except TypeError:  # the type of a value was changed by damage
            return False

    @property
    def extras(self) -> Mapping[str, Any]:
        """The content of `more`."""
        extras: JsonDict = orjson.loads(self.more) if self.more else {}
        return extras

    def outcome(self) -> Outcome:
        """Return the outcome that the record stores."""
        extras = self.extras
        usage = Usage(self.prompt_tokens, self.completion_tokens, **extras.get("tokens", {}))
        if self.code is not None:
            error = PromptmillError(Code(self.code), self.text, "")
            error.said = extras.get("response")
            return Failure(
                error,
                self.attempts,
                self.latency_s,
                usage,
                cost=extras.get("cost"),
                wanted=extras.get("wanted", 1),
                part=extras.get("part", ""),
                details=extras.get("details"),
                came=extras.get("came", ""),
                shared=extras.get("shared", 0),
                sources=extras.get("sources"),
                probabilities=extras.get("probabilities"),
            )
        return Completion(
            self.text,
            self.finish_reason,
            usage,
            self.reasoning,
            tuple(extras.get("tool_calls", ())),
            self.attempts,
            self.latency_s,
            extras.get("logprobs"),
            _by_question(extras, self.text),
            extras.get("details"),
            extras.get("answered_by", ""),
            extras.get("cost"),
            tuple(extras.get("answers", ())),
            made_of=1 if "answers" in extras else extras.get("wanted", 1),
            came=extras.get("came", ""),
            shared=extras.get("shared", 0),
            sources=extras.get("sources"),
            vectors=() if self.vector is None else (self.vector,),
        )


def record_of(key: int, outcome: Outcome, asked: bytes | None = None, made: Provenance = FIRST) -> Record:
    """Return a record of `outcome` with this key. Lone surrogates become replacement characters."""
    fields = _fields(outcome, made)
    vector = outcome.vectors[0] if isinstance(outcome, Completion) and outcome.vectors else None
    try:
        check = checksum(fields, vector)
    except TypeError:  # a lone surrogate, which no file can contain
        fields = (*fields[:6], *map(mended, fields[6:]))
        check = checksum(fields, vector)
    return Record._make((key, *fields, asked, check, made.settings, made.round, vector))


def _fields(outcome: Outcome, made: Provenance) -> tuple[Any, ...]:
    usage = outcome.usage
    spent = (
        outcome.attempts,
        float(outcome.latency_s),
        usage.prompt_tokens,
        usage.completion_tokens,
    )
    more = _further(outcome)
    if not isinstance(outcome, Completion):
        error = outcome.error
        if error.said is not None:
            more["response"] = error.said
        if outcome.part:
            more["part"] = outcome.part
            if outcome.probabilities:
                more["probabilities"] = outcome.probabilities
        text = _json(more) if more else None
        return (*spent, str(error.code), int(error.retryable), None, str(error), None, text)
    if made.changed:
        more["changed"] = list(made.changed)
    if outcome.tool_calls:
        more["tool_calls"] = outcome.tool_calls
    if outcome.logprobs is not None:
        more["logprobs"] = outcome.logprobs
    if outcome.probabilities is not None:
        more |= _probabilities(outcome.shown_probabilities, outcome.text)
    if outcome.answers:
        more["answers"] = outcome.answers
    if model := outcome.answered_by or made.model:
        more["answered_by"] = model
    text = _json(more) if more else None
    return (*spent, None, 0, outcome.finish_reason, outcome.text, outcome.reasoning, text)


def _further(outcome: Outcome) -> dict[str, Any]:
    """Return the optional fields that both answers and failures may have."""
    usage = outcome.usage
    more: dict[str, Any] = {} if outcome.cost is None else {"cost": round(outcome.cost, 9)}
    if usage.cached_tokens or usage.reasoning_tokens or usage.written_tokens or usage.searches or usage.audio_tokens:
        more["tokens"] = {name: count for name in FURTHER_TOKENS if (count := getattr(usage, name))}
    if outcome.wanted > 1:
        more["wanted"] = outcome.wanted
    if outcome.came:
        more["came"] = outcome.came
    if outcome.shared:
        more["shared"] = outcome.shared
    if outcome.sources is not None:
        more["sources"] = outcome.sources
    if outcome.details is not None:
        more["details"] = outcome.details
    return more


def _probabilities(shown: JsonObject, text: str) -> JsonDict:
    """Return the answer's own `probability`, if `shown` has it, and `probabilities`, if `shown` has other answers."""
    own = {"probability": shown[text]} if text in shown else {}
    return own if len(shown) == len(own) else {**own, "probabilities": shown}


def _by_question(extras: JsonObject, text: str) -> Mapping[str, Mapping[str, float]] | None:
    """Return `Completion.probabilities`, restored from the fields that `_probabilities` returned."""
    own = {text: extras["probability"]} if "probability" in extras else None
    return by_question(extras.get("probabilities", own))


def checksum(fields: tuple[Any, ...], vector: bytes | None) -> int:
    """Return the checksum of `fields` (the columns `attempts` to `more`) and `vector`. Raises `TypeError` for values
    that are not JSON."""
    check = zlib.crc32(orjson.dumps(fields))
    return check if vector is None else zlib.crc32(vector, check)


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return orjson.dumps(mended(value)).decode()
