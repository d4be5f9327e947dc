"""What a caller is told of a call over a list."""

from __future__ import annotations

import orjson
import pytest

from promptmill.backends.protocol import Call, Completion, Failure, Outcome, Usage
from promptmill.core.errors import Code, PromptmillError
from promptmill.service import list_call
from promptmill.service.driver import record_outcome
from promptmill.service.list_call import ListSink

GOOD = Completion("Paris.", "stop", Usage(5, 2), attempts=2, latency_s=0.5)
BAD = Failure(PromptmillError(Code.TIMEOUT, "h was silent."), 3, 1.5)
FILTERED = Failure(PromptmillError(Code.CONTENT_FILTER, "h filtered this answer."), 1, usage=Usage(4, 0))


def test_a_failed_item_is_an_empty_answer_and_an_entry_of_its_own():
    outcomes: list[Outcome] = [GOOD, BAD, GOOD]
    assert list_call.answers(outcomes) == ["Paris.", "", "Paris."]
    assert list_call.errors(outcomes) == [
        {"index": 1, "code": "timeout", "message": str(BAD.error), "retryable": True, "attempts": 3}
    ]
    assert list_call.errors([GOOD]) == []


def test_the_part_of_a_failed_answer_that_is_right_is_in_its_entry():
    part = '{"urgent":true}'
    failed = Failure(PromptmillError(Code.INVALID_ANSWER, "h gave no usable answer to `team`."), 1, part=part)
    (entry,) = list_call.errors([GOOD, failed])
    assert (entry["index"], entry["part"], list_call.answers([failed])) == (1, part, [""])


def test_the_commonest_reason_comes_first():
    assert list_call.summary([GOOD, FILTERED, BAD, BAD]) == (
        f"2 of 4 failed with timeout: {BAD.error} 1 of 4 failed with content_filter: {FILTERED.error}"
    )
    assert list_call.summary([BAD]) == f"timeout: {BAD.error}"
    assert list_call.summary([GOOD]) == ""
    assert list_call.summary([]) == ""


def test_a_summary_stays_short_however_many_reasons_there_are():
    outcomes = [Failure(PromptmillError(code, "it broke.")) for code in Code if code is not Code.DEFERRED]
    summary = list_call.summary(outcomes)
    assert summary.count("failed with") == 3
    assert f"and {len(outcomes) - 3} more" in summary


def test_what_goes_on_as_a_job_has_not_failed():
    deferred, wrong = Failure(PromptmillError(Code.DEFERRED, "later")), Failure(PromptmillError(Code.TLS, "no"))
    assert not list_call.failed([deferred], any_failure=True)
    assert not list_call.failed([deferred, wrong], any_failure=False)
    assert list_call.failed([deferred, wrong], any_failure=True)
    assert list_call.summary([deferred, wrong]) == f"1 of 2 failed with tls: {wrong.error}"
    assert list_call.deferred([deferred, wrong]) == 1
    assert [entry["code"] for entry in list_call.errors([deferred, wrong])] == ["deferred", "tls"]


def test_columns_have_one_entry_per_item_in_order():
    columns = list_call.columns([GOOD, FILTERED])
    assert columns == {
        "finish_reason": ["stop", None],
        "usage": [{"prompt_tokens": 5, "completion_tokens": 2}, {"prompt_tokens": 4, "completion_tokens": 0}],
        "attempts": [2, 1],
        "latency_s": [0.5, 0.0],
    }


def test_rare_columns_are_there_when_some_item_has_them():
    calls = ({"id": "c1"},)
    columns = list_call.columns([GOOD, Completion("x", reasoning="because"), Completion("", tool_calls=calls)])
    assert columns["reasoning"] == [None, "because", None]
    assert columns["tool_calls"] == [None, None, [{"id": "c1"}]]
    assert "logprobs" not in columns
    assert list_call.columns([GOOD, Completion("x", logprobs={"content": []})])["logprobs"] == [None, {"content": []}]
    assert list_call.columns([GOOD, Completion("x", probabilities={"": {"x": 1.0}})])["probabilities"] == [
        None,
        {"x": 1.0},
    ]


@pytest.mark.parametrize(("items", "there"), [(0, True), (1000, True), (1001, False)])
def test_columns_are_left_out_of_large_calls(items, there):
    assert bool(list_call.columns([GOOD] * items)) is there


def test_totals_count_tokens_over_time():
    call = Call()
    for outcome in (GOOD, FILTERED):
        call.count(outcome)
    call.counts.requests, call.counts.retries, call.started = 4, 2, call.started - 10
    totals = list_call.totals(call)
    assert {name: totals[name] for name in ("requests", "retries", "prompt_tokens", "completion_tokens")} == {
        "requests": 4,
        "retries": 2,
        "prompt_tokens": 9,
        "completion_tokens": 2,
    }
    assert 10 <= totals["seconds"] < 12
    assert totals["tokens_per_second"] == 0.2
    assert "warnings" not in totals


def test_warnings_are_told_once_each_in_order():
    call = Call()
    for warning in ("b", "a", "b"):
        call.warn(warning)
    assert list_call.totals(call)["warnings"] == ["b", "a"]


@pytest.mark.parametrize(
    ("outcomes", "any_failure", "failed"),
    [
        ([], False, False),
        ([GOOD], True, False),
        ([GOOD, BAD], False, False),
        ([GOOD, BAD], True, True),
        ([BAD, BAD], False, True),
    ],
)
def test_a_call_failed_when_nothing_was_answered_or_any_failure_counts(outcomes, any_failure, failed):
    assert list_call.failed(outcomes, any_failure=any_failure) is failed


async def test_large_answers_are_kept_up_to_a_limit_and_ordinary_ones_always():
    sink = list_call.ListSink(5, 1_000_000)
    for key, text in enumerate(
        ["x" * 600_000, "y" * 600_000, "z" * 60_000, "z" * 300_000, "\N{GRINNING FACE}" * 50_000]
    ):
        sink.put(key, Completion(text))
    found = sink.result(None)
    assert [isinstance(outcome, Completion) for outcome in found] == [True, False, True, True, False]
    assert isinstance(found[1], Failure)
    assert "take more than" in found[1].error.message
    sink.put(2, Completion("", logprobs={"content": [{"token": "a", "logprob": -0.5}] * 10_000}))
    assert isinstance(sink.result(None)[2], Failure)


async def test_all_answers_together_have_a_limit_that_ends_the_call():
    sink = list_call.ListSink(4, 1_000_000, 200_000)
    for key in range(3):
        sink.put(key, Completion("x" * 60_000))
    with pytest.raises(PromptmillError, match="answers of this call take more than 0 MiB"):
        sink.put(3, Completion("x" * 60_000))
    assert not sink.missing, "the answer that is too much is there"


async def test_rejected_answers_count_as_answers_do():
    sink = list_call.ListSink(4, 1_000_000, 700_000)
    wrong = PromptmillError(Code.INVALID_ANSWER, "Wrong.")
    for key in range(3):
        sink.put(key, Failure(wrong, text="x" * 600_000, attempts=key))
    sink.put(3, Completion("x" * 60_000))
    found = [outcome for outcome in sink.result(None) if isinstance(outcome, Failure)]
    assert [(len(failure.text), failure.attempts) for failure in found] == [(600_000, 0), (0, 1), (0, 2)]
    assert {failure.error.code for failure in found} == {Code.INVALID_ANSWER}
    with pytest.raises(PromptmillError, match="answers of this call take more than 0 MiB"):
        sink.put(3, Failure(wrong, text="y" * 60_000))


async def test_items_that_fail_alike_share_their_failure():
    sink = list_call.ListSink(5)
    said = PromptmillError(Code.BAD_REQUEST, "No.")
    said.said = {"status_code": 400}
    alike = [Failure(PromptmillError(Code.BAD_REQUEST, "No.")) for _ in range(2)]
    for key, failure in enumerate([*alike, Failure(PromptmillError(Code.BAD_REQUEST, "No."), 1), Failure(said), BAD]):
        sink.put(key, failure)
    found = [outcome for outcome in sink.result(None) if isinstance(outcome, Failure)]
    assert found[1] is found[0]
    assert found[2].error is found[0].error
    assert found[2].attempts == 1
    assert [found[3].error, found[4].error] == [said, BAD.error]


async def test_the_failures_that_a_call_compares_have_a_limit():
    sink = list_call.ListSink(1)
    for number in range(200):
        sink.put(0, Failure(PromptmillError(Code.BAD_REQUEST, f"No {number}.")))
    assert len(sink._failures) == 100


@pytest.mark.parametrize("in_message", [True, False])
async def test_the_errors_of_items_that_each_fail_differently_have_a_limit(monkeypatch, in_message):
    monkeypatch.setattr(list_call, "MOST_LARGE", 100_000)
    sink = list_call.ListSink(3000)
    for key in range(3000):
        error = PromptmillError(Code.BAD_REQUEST, f"No {key if in_message else 0}.")
        error.said = {"request_id": key}
        sink.put(key, Failure(error))
    found = [outcome for outcome in sink.result(None) if isinstance(outcome, Failure)]
    assert len({id(failure.error) for failure in found}) < 220
    assert found[2998] is found[2999]
    assert found[2999].error.code is Code.BAD_REQUEST
    assert found[2999].error.message.startswith("The message is left out")


async def test_items_that_are_not_sent_after_a_failure_are_one_entry():
    sink = list_call.ListSink(3000)
    for key in range(3000):
        sink.put(key, Failure(PromptmillError(Code.BAD_REQUEST, "No."), attempts=int(key == 0), latency_s=key))
    entries = list_call.errors(sink.result(None))
    assert len(entries) < 1100
    assert (entries[-1]["last"], entries[-1]["attempts"]) == (2999, 0)


async def test_many_small_values_in_an_answer_count_with_their_memory():
    sink = list_call.ListSink(1, 1_000_000)
    sink.put(0, Completion("", tool_calls=({"a": {}},) * 10_000))
    assert isinstance(sink.result(None)[0], Failure), "they take 2 MB, their JSON 80 KB"


async def test_values_that_thousands_of_prompts_share_are_measured_once(monkeypatch):
    measured = []

    class Counted:
        def dumps(self, value):
            measured.append(value)
            return orjson.dumps(value)

    monkeypatch.setattr(list_call, "orjson", Counted())
    sink = list_call.ListSink(3, most_large=1 << 20)
    one, other = {"content": ["a"]}, {"content": ["b"]}
    for key, logprobs in enumerate((one, one, other)):
        sink.put(key, Completion("x", "stop", logprobs=logprobs))
    assert measured == [(one, ()), (other, ())]


async def test_the_answer_that_fills_a_list_counts():
    sink, call = ListSink(3, 10_000, most=2_000), Call()
    large = Completion("x" * 3_000)
    record_outcome(0, GOOD, sink, call)
    with pytest.raises(PromptmillError):
        record_outcome(1, large, sink, call)
    outcomes = sink.result(PromptmillError(Code.INTERNAL, "no room"))
    assert [isinstance(outcome, Completion) for outcome in outcomes] == [True, True, False]
    assert call.counts.done == 2
