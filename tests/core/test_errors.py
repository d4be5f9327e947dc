"""Every error: a stable code, a hint, safe to pickle and to show."""

from __future__ import annotations

import pickle
import re

import pytest

from promptmill.core import errors
from promptmill.core.errors import (
    ArgumentError,
    Code,
    Named,
    PromptmillError,
    config_error,
    input_error,
    internal_error,
    redact,
)


def test_every_error_class_of_the_module_is_ours():
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__
    ]
    assert classes == [PromptmillError, ArgumentError], "a new error class needs its own round trip below"


@pytest.mark.parametrize("kind", [PromptmillError, ArgumentError])
@pytest.mark.parametrize("hint", [None, "", "do this"])
def test_every_error_survives_pickle(hint, kind):
    for code in Code:
        error = kind(code, "it broke", hint)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (again.code, again.message, again.hint, again.retryable, str(again)) == (
            error.code,
            error.message,
            error.hint,
            error.retryable,
            str(error),
        )


def test_an_error_with_names_survives_pickle():
    error = PromptmillError(
        Code.INVALID_CONFIG, ("no ", Named("max_body")), ("Set ", Named("price", {"input": 1}), ".")
    )
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == 'no `max_body` Set `price: {"input": 1}`.'
    assert again.worded(lambda named: f"--{named.field}") == "no --max_body Set --price."


@pytest.mark.parametrize("code", list(Code))
def test_every_code_is_a_lower_case_word_with_a_hint(code):
    error = PromptmillError(code, "it broke")
    assert re.fullmatch(r"[a-z_]+", code)
    assert error.hint.endswith(".")
    assert str(error) == f"it broke {error.hint}"
    assert isinstance(error.retryable, bool)


def test_what_may_help_to_try_again_is_marked():
    final = {code for code in Code if not PromptmillError(code, "").retryable}
    assert final == {
        Code.INVALID_INPUT,
        Code.EMPTY_PROMPT,
        Code.INVALID_CONFIG,
        Code.INVALID_IMAGE,
        Code.UNSUPPORTED,
        Code.UNAUTHORIZED,
        Code.INSUFFICIENT_QUOTA,
        Code.NOT_FOUND,
        Code.BAD_REQUEST,
        Code.CONTEXT_LENGTH,
        Code.REQUEST_TOO_LARGE,
        Code.OPEN_REASONING,
        Code.TRUNCATED,
        Code.CONTENT_FILTER,
        Code.TLS,
        Code.DEFERRED,
        Code.OMITTED,
        Code.MISSING_DEPENDENCY,
        Code.ENGINE_LOAD_FAILED,
        Code.OUT_OF_MEMORY,
        Code.INTERNAL,
    }


def test_errors_of_arguments_and_keys_say_all_in_their_message():
    assert str(input_error("prompt_ls[1] is a number.")) == "prompt_ls[1] is a number."
    assert str(config_error("backend_configs.openai.rpm", "is wrong.")) == "backend_configs.openai.rpm: is wrong."
    assert str(config_error("", "The file is gone.")) == "The file is gone."


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("http://user:hunter2@host/v1 is down", "hunter2"),
        ("https://token-abc@host/", "token-abc"),
        ("Authorization: Bearer abcdef.123", "abcdef.123"),
        ("authorization: bearer abcdef", "abcdef"),
        ("Incorrect API key provided: sk-proj-abcdefghijklmnopqrstuv.", "abcdefghijklmnopqrstuv"),
        ("key sk_live_abcdefghijklmnop0123", "abcdefghijklmnop0123"),
        ("gsk_abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstuvwx"),
        ("hf_abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstuvwx"),
        ("AIzaSyA-abcdefghijklmnopqrstuvwx", "SyA-abcdefghijklmnopqrstuvwx"),
        ("nvapi-abcdefghijklmnopqrstuvwx", "abcdefghijklmnopqrstuvwx"),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text, secret):
    assert secret not in redact(text)
    assert "[redacted]" in redact(text)


def test_known_secrets_are_not_shown_whatever_they_look_like():
    assert redact("the key plain-old-word is wrong", ("plain-old-word",)) == "the key [redacted] is wrong"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a plain sentence",
        "http://host/v1",
        "mail me@host",
        "the task-based-approach",
        "`skip_special_tokens` is not a key",
        "/data/hf_dataset_prompts_2024.jsonl",
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "sk-learn-pipeline-config-v2-final",
    ],
)
def test_other_text_stays(text):
    assert redact(text) == text


def test_a_bug_is_logged_with_its_place_and_without_what_it_quotes(caplog):
    def broken():
        raise KeyError("the prompt")

    try:
        broken()
    except KeyError as error:
        told = internal_error("The request could not be prepared", error)
    assert told.message == "The request could not be prepared: KeyError."
    assert "in broken" in caplog.text
    assert "the prompt" not in caplog.text.replace('raise KeyError("the prompt")', "")
