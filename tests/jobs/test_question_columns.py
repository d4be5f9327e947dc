"""The questions of an input: the columns that prompts, settings and images come from."""

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.files import json_values
from promptmill.jobs.inputs.question_columns import questions_of
from promptmill.jobs.rows.row_questions import cells_of, joined, question_of


def test_moved_columns_ask_the_same_question_and_json_in_cells_keeps_its_order(ingested, tmp_path):
    messages = '[{"role": "user", "content": "hello"}]'.replace('"', '""')
    (tmp_path / "a.csv").write_text(f'temperature,messages\n0,"{messages}"\n')
    (tmp_path / "b.csv").write_text(f'messages,temperature\n"{messages}",0\n')
    first, second = (ingested(name) for name in ("a.csv", "b.csv"))
    assert first.rows[0].asked == second.rows[0].asked != bytes(16)
    assert list(first.asked[0]) == ["messages", "temperature"]
    assert first.asked == [{"messages": [{"role": "user", "content": "hello"}], "temperature": "0"}]


@pytest.mark.parametrize(
    ("header", "options", "name"),
    [
        ("prompt,id,prompt", {}, "prompt"),
        ("x,id,x", {"column": "x"}, "x"),
        ("x,id,x", {"templates": ("Say {{x}}",)}, "x"),
        ("prompt,image,image", {}, "image"),
    ],
)
def test_two_columns_of_the_name_that_is_asked_are_refused(ingested, tmp_path, header, options, name):
    (tmp_path / "in.csv").write_text(f"{header}\na,1,b\n")
    with pytest.raises(PromptmillError, match=f"two columns `{name}`"):
        ingested("in.csv", **options)


def test_a_template_over_a_whole_row_has_all_columns_by_the_names_that_they_have_in_json(ingested, tmp_path):
    (tmp_path / "in.csv").write_text("x,id,x,prompt,prompt\na,1,b,p,q\n")
    job = ingested("in.csv", templates=("{{row}}",))
    assert job.asked == [{"prompt": '{"x":"a","id":"1","x_2":"b","prompt":"p","prompt_2":"q"}'}]
    assert ingested("in.csv", templates=("{{id}}",)).asked == [{"prompt": "1"}]


def questions(job, row):
    """Return what each prompt of a row asks."""
    spec = job.spec
    made = questions_of(spec.question, spec.input.format, spec.input.header)
    stored = [None if row.line is None else question_of(row.line, at) for at in range(len(made))]
    return [
        one.asked(row.cells, "")[0] if line is None or line == cells_of({}, ()) else json_values.load(line, "")
        for one, line in zip(made, stored, strict=True)
    ]


@pytest.mark.parametrize("templates", [("Say {{a}}", "{{ a | upper }}"), ("Say {{a}}", "Ask {{a}}")])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_each_prompt_of_a_row_has_its_question_and_its_digest(ingested, tmp_path, kind, templates):
    lines = {"csv": "a,b\nx,1\n,2\n", "jsonl": '{"a": "x", "b": 1}\n{"a": "", "b": 2}\n'}
    (tmp_path / f"in.{kind}").write_text(lines[kind])
    both = ingested(f"in.{kind}", templates=templates)
    each = [ingested(f"in.{kind}", templates=(template,)) for template in templates]
    for at, row in enumerate(both.rows):
        assert row.asked == b"".join(one.rows[at].asked or b"" for one in each)
        assert questions(both, row) == [one.asked[at] for one in each]
    assert both.rows[1].asked == bytes(32), "a row without a question has the digest zero"


def test_a_question_may_hold_any_text(ingested, tmp_path):
    texts = [b'{"prompt":"a\\u001fb"}', '{"prompt":"\x1f ü"}'.encode()]
    assert question_of(joined([texts[0]]), 0) == texts[0]
    (tmp_path / "in.csv").write_text("a\nx\x1fy\n")
    job = ingested("in.csv", templates=("1 {{a}}", "2 {{a}}"))
    assert job.rows[0].line is None, "its cells have it all"
    assert questions(job, job.rows[0]) == [{"prompt": "1 x\x1fy"}, {"prompt": "2 x\x1fy"}]
