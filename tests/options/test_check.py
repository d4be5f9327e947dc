"""One function checks the combinations of options, and words its errors for each face."""

from __future__ import annotations

from typing import Any

import pytest

from promptmill.cli.options import option_of
from promptmill.core.errors import PromptmillError
from promptmill.jobs.manage.bulk_keywords import argument_of as keyword_of
from promptmill.options.check import check
from promptmill.server.bulk_tools import _argument_of

SURE = {"sure": "strong"}


def needs(feature: str, options: dict[str, Any], said: str) -> Any:
    """Return a case that needs a feature."""
    return pytest.param(options, said, marks=pytest.mark.features(feature))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        needs("labels", {"agree": 0.9}, "--agree goes with --sure MODEL."),
        needs("batches", {"poll": "1m"}, "--poll goes with --batch."),
        needs("ray", {"num_gpus": 2}, "--num-gpus goes with --ray ADDRESS."),
        ({"choices_many": True}, "--choices-many goes with --choices."),
        ({"choices": ["a"], "schema": {"type": "object"}}, "--choices goes without --schema."),
        ({"choices": ["a"], "fields": "amount"}, "--choices goes without --fields."),
        ({"sample": 5, "limit": 5}, "--sample goes without --limit."),
        ({"shard": "1/2", "limit": 5, "output": "o"}, "--shard goes without --limit."),
        ({"shard": "1/2", "model": ["a", "b"], "output": "o"}, "--shard goes without several models."),
        needs("labels", SURE | {"prompt": {"a": "x", "b": "y"}}, "--sure goes without several prompts."),
        needs("labels", SURE | {"again": "all"}, "--sure goes without --again all: name another output"),
        needs(
            "labels",
            SURE | {"gold": "label", "recall": {"a": 0.9}},
            "--gold goes without --recall: its promise",
        ),
        needs(
            "labels",
            SURE | {"student": True, "model": "cheap"},
            "--student goes without --model: it takes",
        ),
        needs("labels", {"votes": 3, "dedupe": True}, "--votes goes without --dedupe."),
        needs(
            "report",
            {"report": "r.html", "validate": True},
            "--report goes without --dry-run; `promptmill jobs JOB --html`",
        ),
        ({"prompt": "a", "prompt_column": "b"}, "--prompt goes without --prompt-column; name the column in the"),
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
    why = ": both say which labels are sure."
    assert said("flag", option_of, nested) == f"--second goes without --votes{why}"
    assert said("argument", _argument_of, nested) == f"`sure.second` goes without `votes`{why}"
    assert said("keyword", keyword_of, nested) == f"`second` goes without `votes`{why}"
    each = {"each": "line"}
    assert said("flag", option_of, each, "stdin") == "--each goes with files and folders of this machine."
    assert said("argument", _argument_of, each, "values") == "`each` goes with `files`."
    assert said("keyword", keyword_of, each, "values") == "`each` goes with files and folders."
    assert said("argument", _argument_of, {"encoding": "cp1252"}, "values") == (
        "`encoding` goes with `input_file` or `files`."
    )
