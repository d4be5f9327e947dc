"""A key that expires is renewed by a program, once for all requests, and no row pays for it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sys
from datetime import datetime

import psutil
import pytest

from dialect_replies import speaks
from driving import ask, echoes, opened
from fakes import openai_config
from processtable import gone
from promptmill.backends.openai.endpoint import endpoints
from promptmill.backends.openai.renewed_key import KeyCommand, NoKeyError, RenewedKey, key_in
from promptmill.backends.protocol import Call, Facts, Key
from promptmill.core.errors import Code
from promptmill.system.subprocesses import Output, output_of
from renewed import ChangingKey
from replies import by_prompt, choose, late, status
from waiting import until

NOW = 1_700_000_000.0


@pytest.fixture
def keys(tmp_path):
    return ChangingKey(tmp_path / "keys")


@pytest.fixture
def keys_every_40(tmp_path):
    return ChangingKey(tmp_path / "keys", every=40)


def _with(upstream, keys, **block):
    return opened(upstream.url, api_key=None, api_key_command=keys.command, **block)


@pytest.mark.thorough
async def test_rows_survive_keys_that_change_while_they_wait(upstream, keys_every_40):
    keys, prompts = keys_every_40, [f"prompt {n}" for n in range(400)]
    upstream.reply = keys.guard(late(0.02))
    async with _with(upstream, keys, concurrency=64, adaptive=False) as backend:
        result = await ask(backend, prompts)
    assert result.texts == echoes(prompts)
    assert set(keys.answered.values()) == {1}, "no row is answered twice"
    assert keys.refused, "requests met the change"
    assert keys.runs <= len(keys.all), "one run for each key, however many requests wait"
    assert {outcome.attempts for outcome in result.outcomes} == {1}


@pytest.mark.thorough
@pytest.mark.parametrize("concurrency", [8, 256])
async def test_two_thousand_rows_survive_fifty_keys(upstream, keys_every_40, concurrency):
    keys, prompts = keys_every_40, [f"prompt {n}" for n in range(2000)]
    upstream.reply = keys.guard(late(0.02))
    async with _with(upstream, keys, concurrency=concurrency) as backend:
        assert (await ask(backend, prompts)).answered == 2000
    assert set(keys.answered.values()) == {1}
    assert keys.runs <= len(keys.all)


@pytest.mark.thorough
@pytest.mark.processes
async def test_workers_get_the_key_from_their_driver(upstream, keys_every_40):
    keys, prompts = keys_every_40, [f"prompt {n}" for n in range(200)]
    upstream.reply = keys.guard(late(0.02))
    async with _with(upstream, keys, num_workers=2, bulk_threshold=1, concurrency=16) as backend:
        result = await ask(backend, prompts)
    assert result.texts == echoes(prompts)
    assert set(keys.answered.values()) == {1}
    assert keys.runs <= len(keys.all), "the driver runs the program, once for all workers"


@pytest.mark.thorough
@pytest.mark.processes
async def test_workers_report_why_there_is_no_key(upstream, keys):
    keys.fail(1000)
    async with _with(upstream, keys, num_workers=2, bulk_threshold=1) as backend:
        result = await ask(backend, [f"prompt {n}" for n in range(20)])
    assert result.codes == {"unauthorized"}
    assert "status 7" in result.failures[0].error.message
    assert not upstream.seen


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dialect", "header"),
    [("anthropic", "x-api-key"), ("gemini", "x-goog-api-key"), ("responses", "authorization")],
)
async def test_each_api_gets_the_key_in_its_own_header(upstream, keys, dialect, header):
    upstream.reply = keys.guard(speaks())
    async with _with(upstream, keys, dialect=dialect) as backend:
        assert (await ask(backend, ["a"])).answered == 1
        keys.change()
        assert (await ask(backend, ["b"])).answered == 1
    assert upstream.seen[-1].headers[header].endswith(keys.now)


async def test_a_streamed_answer_is_shown_from_its_beginning_after_a_refusal(upstream, keys):
    shown = []
    upstream.reply = keys.guard()
    async with _with(upstream, keys) as backend:
        assert (await ask(backend, ["a"])).answered == 1
        keys.change()
        call = Call(Facts(total=1))
        call.preview = lambda growing: shown.append(growing.text)
        assert (await ask(backend, ["one two three"], call)).texts == ["echo: one two three"]
    assert shown[-1] == "echo: one two three"


@pytest.mark.thorough
@pytest.mark.parametrize(
    "refusal",
    [
        status(401),
        status(403, "The security token included in the request is expired", code="ExpiredTokenException"),
        status(400, "API key expired. Please renew the API key."),
        status(403, "Invalid Token"),
    ],
)
async def test_a_key_that_expired_is_renewed_whatever_the_status(upstream, keys, refusal):
    upstream.reply = keys.guard(refusal=refusal)
    async with _with(upstream, keys) as backend:
        assert (await ask(backend, ["a"])).answered == 1
        keys.change()
        assert (await ask(backend, ["b"])).answered == 1
    assert keys.runs == 2


async def test_a_refused_renewed_key_is_a_refused_key(upstream, keys):
    upstream.reply = choose(lambda seen: (keys.change(), status(401, "Who are you?"))[1])
    async with _with(upstream, keys) as backend:
        result = await ask(backend, ["a"])
    assert len(upstream.seen) == keys.runs == 2
    assert result.codes == {"unauthorized"}
    assert result.failures[0].error.hint == "The key sent is the output of `api_key_command`; correct it."


@pytest.mark.thorough
async def test_a_program_that_prints_the_refused_key_again_is_not_asked_for_ever(upstream, keys):
    upstream.reply = status(401)
    async with _with(upstream, keys, concurrency=32) as backend:
        result = await ask(backend, [f"prompt {n}" for n in range(500)])
    assert result.codes == {"unauthorized"}
    assert len(upstream.seen) <= 64
    assert keys.runs <= 4


@pytest.mark.simulated
async def test_a_forbidden_row_runs_no_program(upstream, keys):
    upstream.reply = by_prompt({"prompt 3": status(403, "This prompt is not allowed.")})
    async with _with(upstream, keys) as backend:
        result = await ask(backend, [f"prompt {n}" for n in range(20)])
    assert (result.answered, keys.runs) == (19, 1)


@pytest.mark.thorough
async def test_a_job_survives_an_outage_of_the_program(upstream, keys, caplog):
    upstream.reply = keys.guard()
    with caplog.at_level(logging.WARNING):
        async with _with(upstream, keys) as backend:
            assert (await ask(backend, ["a"])).answered == 1
            keys.change()
            keys.fail(5)
            prompts = [f"prompt {n}" for n in range(20)]
            assert (await ask(backend, prompts)).texts == echoes(prompts)
    assert keys.runs == 1 + 5 + 1
    assert "status 7: the token service is away" in caplog.text
    assert keys.now not in caplog.text


@pytest.mark.thorough
async def test_a_program_that_fails_is_a_clear_error_without_its_key(upstream, keys):
    keys.fail(1000)
    async with _with(upstream, keys) as backend:
        result = await ask(backend, [f"prompt {n}" for n in range(100)])
    error = result.failures[0].error
    assert error.code is Code.UNAUTHORIZED
    assert "printed no key: it ended with status 7: the token service is away, not" in error.message
    assert keys.runs == 3, "for all rows together"
    assert not upstream.seen
    assert all(failure.concerns_all for failure in result.failures.values())


async def test_a_missing_program_is_an_error_at_once(upstream):
    async with opened(upstream.url, api_key=None, api_key_command="no-such-program --now") as backend:
        result = await ask(backend, ["a", "b"])
    assert result.codes == {"invalid_config"}
    assert "`api_key_command` (no-such-program) was not found" in str(result.failures[0].error)


async def test_no_message_has_the_key(upstream, keys):
    upstream.reply = choose(lambda seen: status(401, f"bad key {seen.headers['authorization'].split()[1]}"))
    async with _with(upstream, keys) as backend:
        result = await ask(backend, ["a"])
    assert keys.now not in str(result.failures[0].error)
    assert "bad key [redacted]" in str(result.failures[0].error)


# Reading a program's output


def _token(**claims):
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims)]
    return ".".join([*parts, "c2lnbmF0dXJl"])


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (b"key-1\n", Key("key-1")),
        (b"\xef\xbb\xbfkey-1\r\n\r\n", Key("key-1")),
        (b'"key-1"', Key("key-1")),  # az without `-o tsv`
        ({"access_token": "key-1", "expires_in": 60, "token_type": "Bearer"}, Key("key-1", NOW + 60)),
        ({"access_token": "key-1", "expires_in": "60"}, Key("key-1", NOW + 60)),
        ({"accessToken": "key-1", "expires_on": int(NOW) + 60, "tenant": "t"}, Key("key-1", NOW + 60)),
        ({"token": "key-1", "expiration": "2023-11-14T22:14:20Z"}, Key("key-1", NOW + 60)),
        ({"token": "key-1", "expiresAt": (NOW + 60) * 1000}, Key("key-1", NOW + 60)),
        (
            {"kind": "ExecCredential", "status": {"token": "key-1", "expirationTimestamp": "2023-11-14T22:14:20Z"}},
            Key("key-1", NOW + 60),
        ),
        ({"credential": {"access_token": "key-1", "token_expiry": "2023-11-14T22:14:20Z"}}, Key("key-1", NOW + 60)),
        ({"token": "key-1", "expires_in": None, "expiration": "soon"}, Key("key-1")),
        (_token(exp=NOW + 60).encode(), Key(_token(exp=NOW + 60), NOW + 60)),
        (b"a.b.c", Key("a.b.c")),
    ],
)
def test_a_key_and_its_expiry_are_read(output, expected):
    assert key_in(output if isinstance(output, bytes) else json.dumps(output).encode(), NOW) == expected


def test_a_time_without_a_zone_is_local():  # the `expiresOn` of az
    output = json.dumps({"accessToken": "k", "expiresOn": "2030-01-02 03:04:05.000000"}).encode()
    assert key_in(output, NOW) == Key("k", datetime(2030, 1, 2, 3, 4, 5).timestamp())  # noqa: DTZ001 (local time)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (b" \n", "is empty"),
        (b"key-1\nkey-2\n", "more than one line"),
        (b"Please log in at https://example.com", "is more than a key"),
        (b"{not json", "begins like JSON"),
        (b"{}", "has none of token"),
        (b'{"token": ["a"]}', "has none of token"),
        (b'{"AccessKeyId": "a", "SecretAccessKey": "b", "Version": 1}', "keys that sign requests"),
        (b'{"token": "a b"}', "is more than a key"),
        (b"Bearer abc", "begins with `Bearer `"),
        (b"export KEY=abc", "whole assignment"),
        ("schlüssel".encode(), "a character that no key has"),
        (b"\xff\xfe\x00", "a character that no key has"),
        (b"x" * 200_000, "is more than a key"),
    ],
)
def test_another_output_is_a_problem(output, problem):
    found = key_in(output, NOW)
    assert isinstance(found, str)
    assert problem in found


# When the program runs


class _Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


class _Program:
    """Prints what `outputs` has, then `key-N` for the N-th run."""

    def __init__(self, *outputs, lifetime=None):
        self.outputs, self.runs, self.lifetime = list(outputs), 0, lifetime

    async def __call__(self, command, limit_s, most_bytes):
        self.runs += 1
        await asyncio.sleep(0)
        output = self.outputs.pop(0) if self.outputs else {"token": f"key-{self.runs}", "expires_in": self.lifetime}
        return output if isinstance(output, Output) else Output(0, json.dumps(output).encode(), b"")


def _renewed(program, clock, **block):
    config = openai_config("http://localhost:1", api_key=None, api_key_command="print-key", **block)
    settings = config.settings.backend_configs.openai
    command = KeyCommand(settings, run=program, clock=clock, sleep=clock.sleep)
    return RenewedKey(command, settings.max_delay, clock)


FAILED = Output(1, b"", b"away")


async def _settled():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_key_is_renewed_before_it_expires_and_used_meanwhile():
    clock, program = _Clock(), _Program(lifetime=3600)
    renewed = _renewed(program, clock)
    assert [await renewed.current() for _ in range(3)] == ["key-1"] * 3
    clock.now += 3600 - 301
    assert await renewed.current() == "key-1"
    clock.now += 2
    assert await renewed.current() == "key-1", "no request waits for it"
    await _settled()
    assert await renewed.current() == "key-2"
    assert program.runs == 2


async def test_a_key_without_an_expiry_is_renewed_only_when_it_is_refused():
    clock, program = _Clock(), _Program()
    renewed = _renewed(program, clock)
    assert await renewed.current() == "key-1"
    clock.now += 1e6
    assert await renewed.current() == "key-1"
    assert (await renewed.after("key-1")).text == "key-2"
    assert (await renewed.after("key-1")).text == "key-2", "a later refusal of the old key finds the new one"
    assert program.runs == 2


async def test_however_many_requests_wait_the_program_runs_once():
    clock, program = _Clock(), _Program()
    renewed = _renewed(program, clock)
    assert set(await asyncio.gather(*(renewed.current() for _ in range(100)))) == {"key-1"}
    assert {key.text for key in await asyncio.gather(*(renewed.after("key-1") for _ in range(100)))} == {"key-2"}
    assert program.runs == 2


async def test_a_waiting_request_that_is_cancelled_leaves_the_run_to_the_others():
    clock, program = _Clock(), _Program()
    renewed = _renewed(program, clock)
    first, second = (asyncio.ensure_future(renewed.current()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "key-1"


async def test_a_program_that_keeps_its_token_until_the_end_is_asked_again_then():
    clock = _Clock()
    program = _Program(*({"token": "old", "expires_on": NOW + 3600} for _ in range(2)), lifetime=3600)
    renewed = _renewed(program, clock)
    assert await renewed.current() == "old"
    clock.now = NOW + 3400
    for _ in range(20):
        assert await renewed.current() == "old"
        await _settled()
    assert program.runs == 2
    clock.now = NOW + 3600
    assert await renewed.current() == "key-3"


async def test_a_token_that_seems_expired_already_is_used_because_a_clock_may_be_wrong():
    clock, program = _Clock(), _Program(*({"token": "t", "expires_on": NOW - 60} for _ in range(3)))
    renewed = _renewed(program, clock)
    assert [await renewed.current() for _ in range(5)] == ["t"] * 5
    assert program.runs == 1


async def test_a_failing_program_does_not_matter_while_the_key_is_valid():
    clock = _Clock()
    program = _Program({"token": "a", "expires_in": 3600}, *([FAILED] * 4), lifetime=3600)
    renewed = _renewed(program, clock)
    await renewed.current()
    clock.now += 3400
    for _ in range(10):
        assert await renewed.current() in {"a", "key-6"}
        await _settled()
    assert await renewed.current() == "key-6"


async def test_an_outage_longer_than_the_patience_is_an_error_that_the_next_requests_share():
    clock, program = _Clock(), _Program({"token": "a"}, *([FAILED] * 100_000))
    renewed = _renewed(program, clock, patience=60, base_delay=1, max_delay=30)
    await renewed.current()
    with pytest.raises(NoKeyError, match="status 1: away"):
        await renewed.after("a")
    assert 60 < clock.now - NOW < 120
    runs = program.runs
    with pytest.raises(NoKeyError):
        await renewed.after("a")
    assert program.runs == runs, "the next request does not wait for as long again"
    clock.now += 31
    program.outputs.clear()
    assert (await renewed.after("a")).text == f"key-{runs + 1}"


async def test_a_program_that_hangs_is_an_error():
    clock, program = _Clock(), _Program(*([Output(None, b"", b"Password: ")] * 3))
    with pytest.raises(NoKeyError, match=r"did not end within 30 s: Password:"):
        await _renewed(program, clock).current()


async def test_an_excerpt_of_the_messages_is_short_and_has_no_secret(monkeypatch):
    monkeypatch.setenv("CLIENT_SECRET", "s3cr3t-of-the-env")
    told = f"half-a-key {'x ' * 400} s3cr3t-of-the-env half-a-key sk-{'a1' * 20} end"
    program = _Program(*([Output(3, b"half-a-key", told.encode())] * 3))
    with pytest.raises(NoKeyError) as caught:
        await _renewed(program, _Clock()).current()
    text = str(caught.value)
    assert len(text) < 600
    assert text.count("[redacted]") == 3
    assert not any(secret in text for secret in ("half-a-key", "s3cr3t", "a1a1"))


@pytest.mark.processes
async def test_a_program_beyond_its_limit_is_ended_with_its_children(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
    code += "print('begun', flush=True); time.sleep(99)"
    output = await output_of([sys.executable, "-c", code], 1.0, 100)
    assert (output.status, output.stdout.strip()) == (None, b"begun")


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="the pipes of a child are inherited otherwise")
async def test_a_program_that_leaves_a_process_behind_has_printed_its_key():
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(5)']); print('k')"
    output = await output_of([sys.executable, "-c", code], 60.0, 100)
    assert (output.status, output.stdout) == (0, b"k\n")


@pytest.mark.thorough
async def test_only_a_part_of_a_large_output_is_kept():
    output = await output_of([sys.executable, "-c", "print('x' * 1_000_000)"], 60.0, 1000)
    assert output == Output(0, b"x" * 1000, b"")


# Headers


@pytest.mark.parametrize(
    ("url", "key", "expected"),
    [
        ("https://a.openai.azure.com/openai/v1", "eyJ0.eyJ1.x", {"Authorization": "Bearer eyJ0.eyJ1.x"}),
        ("https://a.openai.azure.com/openai/v1", "0123abcd", {"api-key": "0123abcd"}),
        ("https://example.com/v1", "ya29.a0", {"Authorization": "Bearer ya29.a0"}),
    ],
)
def test_a_token_of_an_account_is_sent_as_a_bearer_token(url, key, expected):
    (endpoint,) = endpoints(openai_config(url, api_key=None, api_key_command="print-key"), {})
    headers = endpoint.with_key(key).headers
    assert {name: value for name, value in headers.items() if key in value} == expected
    assert "api_key_command" not in str(headers)


def test_a_header_of_the_configuration_replaces_the_key():
    own = {"authorization": "Basic abc"}
    (endpoint,) = endpoints(openai_config("https://x.com", api_key=None, api_key_command="print-key", headers=own), {})
    assert endpoint.renewed is None
    assert endpoint.headers["authorization"] == "Basic abc"


@pytest.mark.processes
async def test_a_program_ends_with_the_connections(upstream, tmp_path):
    pid = tmp_path / "pid"
    code = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(99)"
    async with opened(upstream.url, api_key=None, api_key_command=[sys.executable, "-c", code]) as backend:
        asking = asyncio.ensure_future(ask(backend, ["a"]))
        await until(lambda: pid.exists() and pid.read_text() != "")
        program = psutil.Process(int(pid.read_text()))
        asking.cancel()
        await asyncio.wait({asking})
    await until(lambda: gone([program]))
