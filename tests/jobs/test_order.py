"""Orders for jobs."""

from pathlib import Path

import pytest

from job_specs import spec_of
from promptmill.core.errors import PromptmillError
from promptmill.files.row import Style
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.order import FailureLimit, InputReading, JobOrder, Limits, OrderTexts, Shard
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.spec import Origin


@pytest.mark.parametrize(
    ("text", "failed", "settled", "exceeded"),
    [
        ("0", 1, 1, True),
        ("5", 5, 5, False),
        ("5", 6, 1000, True),
        ("10%", 2, 2, False),  # too few to say
        ("10%", 2, 20, False),
        ("10%", 3, 20, True),
        ("2.5%", 3, 100, True),
    ],
)
def test_a_limit_of_failures_is_a_number_or_a_share(text, failed, settled, exceeded):
    assert FailureLimit.parse(text).exceeded(failed, settled) is exceeded


@pytest.mark.parametrize("text", ["", "x", "-1", "5 %%", "101%", "1.5"])
def test_a_limit_of_failures_that_cannot_be_read_is_refused(text):
    with pytest.raises(PromptmillError, match="neither a number nor a share"):
        FailureLimit.parse(text)


@pytest.mark.parametrize(
    ("text", "said"), [("0/3", "the first is 1"), ("4/3", "4 is more than 3"), ("1", "not I/N"), ("1/2/3", "not I/N")]
)
def test_a_shard_that_does_not_exist_is_refused(text, said):
    with pytest.raises(PromptmillError, match=said):
        Shard.parse(text)


def test_the_output_of_a_shard_is_a_part_file_and_the_whole_one_is_known_from_it():
    order = JobOrder(inputs=(Path("/in"),), output=Path("/out.csv"), limits=Limits(shard="3/16"))
    assert order.target == Path("/out.csv.part-03-of-16")
    part = order.model_copy(update={"output": order.target})
    assert (part.target, part.whole_output) == (order.target, order.output)


@pytest.mark.parametrize(
    ("values", "templates", "rows_set", "prompts"),
    [
        ({}, (), True, 1),
        ({"column": "text"}, (), False, 1),
        ({"column": "text", "row_settings": True}, (), True, 1),
        ({"templates": ("{{a}}", "{{b}}")}, ("{{a}}", "{{b}}"), False, 2),
        ({"image_column": "image"}, ('{{ row["prompt"] }}',), False, 1),
        ({"image_column": "image", "column": 'a "b"'}, ('{{ row["a \\"b\\""] }}',), False, 1),
    ],
)
def test_a_question_has_a_template_for_each_prompt(values, templates, rows_set, prompts):
    question = JobPrompts(**values)
    assert (question.templates, question.rows_set, question.prompts) == (templates, rows_set, prompts)


def test_an_order_and_a_job_are_read_as_they_were_stored():
    order = JobOrder(
        inputs=(Path("/in"),),
        output=Path("/out"),
        reading=InputReading(sql="SELECT 1"),
        limits=Limits(limit=3, dedupe=True),
        shown=OrderTexts(reason="judge", command=["compare"]),
    )
    assert JobOrder.model_validate(order.model_dump(mode="json")) == order
    spec = spec_of("csv").model_copy(update={"origin": Origin(owner="me", working_folder=Path("/work"))})
    spec = spec.with_input(style=Style(";", has_bom=True))
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_limit_of_an_order_of_an_older_version_is_read():
    assert JobOrder.model_validate({"inputs": ["/in"], "output": "/out", "limits": {"rows": 3}}).limits.limit == 3
