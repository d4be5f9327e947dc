"""One function checks the combinations of options, and words its errors for each face."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.cli.error_words import option_of
from promptmill.core.errors import Named, PromptmillError
from promptmill.jobs.manage.bulk_keywords import argument_of as keyword_of
from promptmill.options import table
from promptmill.options.check import check
from promptmill.server.bulk_tools import _argument_of

SURE = {"sure": "strong"}


def needs(feature: str, options: dict[str, Any], said: str) -> Any:
    """Return a case that needs a feature."""
    return pytest.param(options, said, marks=pytest.mark.features(feature))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        needs("labels", {"certainty": 0.9}, "--certainty needs --sure MODEL"),
        needs("batches", {"poll": "1m"}, "--poll needs --batch."),
        needs("ray", {"num_gpus": 2}, "--num-gpus needs --ray ADDRESS."),
        needs("sources", {"quote": True}, "--quote needs --schema, --fields or --choices."),
        ({"choices_many": True}, "--choices-many needs --choices."),
        ({"choices": ["a"], "schema": {"type": "object"}}, "--choices cannot be used with --schema; leave one of"),
        ({"choices": ["a"], "fields": "amount"}, "--choices cannot be used with --fields; "),
        ({"sample": 5, "limit": 5}, "--sample cannot be used with --limit; "),
        ({"shard": "1/2", "limit": 5, "output": "o"}, "--shard cannot be used with --limit; "),
        ({"shard": "1/2", "model": ["a", "b"], "output": "o"}, "--shard cannot be used with several models; name one."),
        needs("labels", SURE | {"prompt": {"a": "x", "b": "y"}}, "--sure cannot be used with several prompts; write"),
        needs("labels", SURE | {"again": "all"}, "--sure cannot be used with --again all; name another output"),
        needs(
            "labels",
            SURE | {"gold": "label", "recall": {"a": 0.9}},
            "--gold cannot be used with --recall: it promises",
        ),
        needs(
            "labels",
            SURE | {"student": True, "model": "cheap"},
            "--student cannot be used with --model: the student takes",
        ),
        needs("labels", {"votes": 3, "dedupe": True}, "--votes cannot be used with --dedupe; "),
        needs(
            "report",
            {"report": "r.html", "detach": True},
            "--report cannot be used with --detach; `promptmill jobs JOB --html`",
        ),
        ({"prompt": "a", "prompt_column": "b"}, "--prompt cannot be used with --prompt-column; name the column in the"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    with pytest.raises(PromptmillError) as caught:
        check(options)
    assert caught.value.worded(option_of).startswith(said)


@pytest.mark.features("labels", "batches", "ray")
@pytest.mark.parametrize(
    "options",
    [
        {"by": "", "keep_files": False, "replicas": 1, "num_gpus": 0, "agree": None, "recall": {}},
        {"choices": ["a"], "fields": True, "choices_many": True, "schema": {}},
        {"model": ["a", "a"], "shard": "1/2", "output": "o"},
        SURE | {"student": True, "model": ["strong"], "again": "failed"},
    ],
)
def test_a_default_is_no_option_that_could_be_in_the_way(options):
    check(options)


@pytest.mark.features("labels")
def test_each_face_spells_the_options_and_the_sources_in_its_own_way():
    def said(face, name, options, rows=""):
        with pytest.raises(PromptmillError) as caught:
            check(options, rows, face)
        return caught.value.worded(name).rstrip()

    nested = {"sure": {"model": "strong", "second": "b", "votes": 3}}
    why = ": both decide which labels are sure."
    assert said("flag", option_of, nested) == f"--second cannot be used with --votes{why}"
    assert said("argument", _argument_of, nested) == f"`sure.second` cannot be used with `votes`{why}"
    assert said("keyword", keyword_of, nested) == f"`second` cannot be used with `votes`{why}"
    each = {"each": "line"}
    only, place = " works only for files and folders", "; these rows come from"
    assert said("flag", option_of, each, "stdin") == f"--each{only} of this machine{place} standard input (`-`)."
    assert said("argument", _argument_of, each, "values") == f"`each` works only for `files`{place} `prompts`."
    assert said("keyword", keyword_of, each, "values") == f"`each`{only}{place} a list or a table."
    assert said("argument", _argument_of, {"encoding": "cp1252"}, "values") == (
        f"`encoding` works only for `input_file` or `files`{place} `prompts`."
    )


def test_each_field_of_an_error_is_an_argument_of_the_tool_or_none():
    for name, option in table.options().items():
        spelled = option.name_on("argument")
        assert _argument_of(Named(name)) == (None if spelled is None else f"`{spelled}`"), name
    assert _argument_of(Named("again", "all")) == '`again: "all"`'
    assert _argument_of(Named("sure", "MODEL")) in {"`sure`", None}, "its value is an object"
    assert _argument_of(Named("temperature")) == "`sampling_params.temperature`"
    assert _argument_of(Named("prompts")) == "`prompts`"
    assert _argument_of(Named("status")) == "bulk_status"
    assert _argument_of(Named("backend_configs.openai.rpm")) is None
