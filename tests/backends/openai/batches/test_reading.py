"""States, times and result lines as providers write them, and as damaged ones arrive."""

import orjson
import pytest

from promptmill.backends.batches import Reply
from promptmill.backends.openai.batches.reading import (
    error_status,
    is_ended,
    is_full,
    reply_of,
    rpc_status,
    state_word,
    unix_time,
)

BODY = {"choices": [{"message": {"content": "a"}}]}


@pytest.mark.parametrize(
    "word",
    [
        *("completed", "COMPLETED", "Completed", "failed", "expired", "cancelled", "canceled", "ended"),
        *("JOB_STATE_SUCCEEDED", "BATCH_STATE_SUCCEEDED", "BATCH_STATE_EXPIRED", "JOB_STATE_PARTIALLY_SUCCEEDED"),
        *("SUCCESS", "TIMEOUT_EXCEEDED"),
    ],
)
def test_a_final_state_is_known_in_each_provider_s_form(word):
    assert is_ended(state_word(word))


@pytest.mark.parametrize("word", ["validating", "in_progress", "Finalizing", "CANCELLATION_REQUESTED", "unheard", None])
def test_every_other_state_means_that_the_batch_runs(word):
    assert not is_ended(state_word(word))


@pytest.mark.parametrize(
    ("value", "time"),
    [
        (1721408653, 1721408653.0),
        (1721408653.5, 1721408653.5),
        ("1721408653", 1721408653.0),
        ("2024-07-19T17:04:13+00:00", 1721408653.0),
        ("2024-07-19T17:04:13.2491382+00:00", 1721408653.249138),
        ("2024-07-19T17:04:13.123456789Z", 1721408653.123456),
        ("2024-07-19T17:04:13", 1721408653.0),
        ("2024-07-19", 1721347200.0),
        ("soon", None),
        (None, None),
        (True, None),
        ({}, None),
    ],
)
def test_a_time_is_read_in_each_provider_s_form(value, time):
    assert unix_time(value) == time


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ({"custom_id": "1", "response": {"status_code": 200, "body": BODY}, "error": None}, (200, BODY)),
        ({"custom_id": "1", "response": BODY}, (200, BODY)),  # Fireworks: the answer itself
        ({"custom_id": "1", "response": {"status_code": 0, "body": BODY}}, (200, BODY)),
        ({"custom_id": "1", "response": {"status_code": None, "body": BODY}}, (200, BODY)),
        ({"custom_id": "1", "response": {"status_code": 200, "body": orjson.dumps(BODY).decode()}}, (200, BODY)),
        (
            {"custom_id": "1", "response": {"status_code": 400, "body": {"error": {"message": "m"}}}, "error": None},
            (400, {"error": {"message": "m"}}),
        ),
        (
            {"custom_id": "1", "response": {"status_code": 0, "body": {"error": {"code": 429}}}},
            (429, {"error": {"code": 429}}),
        ),
        ({"custom_id": "1", "response": {"status_code": 502, "body": None}}, (502, None)),
        ({"custom_id": "1", "response": {"status_code": 0, "body": {}}, "error": None}, (0, None)),
        ({"custom_id": "1", "response": None, "error": {"code": "batch_expired", "message": "m"}}, (0, None)),
        ({"custom_id": "1", "response": None, "error": {"code": "batch_cancelled", "message": "m"}}, (0, None)),
        ({"custom_id": "1", "error": {"code": "server_error"}}, (500, {"error": {"code": "server_error"}})),
        (
            {"custom_id": "1", "error": {"type": "invalid_request_error", "message": "m"}},
            (400, {"error": {"type": "invalid_request_error", "message": "m"}}),
        ),
        ({"custom_id": "1", "error": "it broke"}, (500, {"error": "it broke"})),
    ],
)
def test_a_result_line_is_read_in_each_provider_s_form(line, reply):
    read = reply_of(line)
    assert read is not None
    status, body = reply
    assert (read.status, orjson.loads(read.body) if read.body else None) == (status, body)


@pytest.mark.parametrize(
    "line",
    [{}, {"custom_id": "1"}, {"response": BODY}, {"custom_id": 1, "response": BODY}, {"custom_id": "1", "error": None}],
)
def test_a_damaged_line_is_no_reply(line):
    assert reply_of(line) is None


def test_an_error_has_the_status_of_its_type_or_code():
    assert error_status({"type": "overloaded_error"}) == 529
    assert error_status({"type": "rate_limit_error"}) == 429
    assert error_status({"code": 503}) == 503
    assert error_status({}) == 500
    assert [rpc_status(code) for code in (3, 8, 13, 14, 1, "429", None)] == [400, 429, 500, 503, 0, 429, 500]


@pytest.mark.parametrize(
    ("payload", "soft", "full"),
    [
        ({"error": {"code": "token_limit_exceeded", "message": "m"}}, False, True),
        ({"error": {"code": "too_many_tasks"}}, False, True),
        ({"error": {"message": "Enqueued token limit reached for gpt-5 in organization o."}}, False, True),
        ({"error": {"message": "Batch requests in the queue exceed the limit"}}, False, True),
        ({"error": {"message": "You exceeded your current quota, please check your plan"}}, False, False),
        ({"error": {"message": "You exceeded your current quota, please check your plan"}}, True, True),
        ({"error": {"message": "You exceeded your current quota. Limit: 0"}}, True, False),
        ({"error": {"code": "invalid_json_line"}}, False, False),
    ],
)
def test_a_full_queue_is_told_from_other_refusals(payload, soft, full):
    assert is_full(payload, soft=soft) == full


def test_a_reply_of_a_request_that_was_not_run_has_no_body():
    assert reply_of({"custom_id": "x", "error": {"code": "batch_expired"}}) == Reply("x", 0, b"")


@pytest.mark.parametrize("named", [{}, {"custom_id": None}, {"custom_id": 7}])
def test_a_failure_without_an_id_is_a_reply_and_an_answer_without_one_is_damaged(named):
    error = {"code": "server_error", "message": "The server had an error."}
    found = reply_of({**named, "response": None, "error": error})
    assert found is not None
    assert (found.custom_id, found.is_answer) == ("", False)
    assert reply_of({**named, "response": {"status_code": 200, "body": {"choices": []}}}) is None
    assert reply_of(named) is None
