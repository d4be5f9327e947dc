"""`--prompt 'Classify: {{text}}'`: what is asked of every row of any file."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

import promptmill
from promptmill.core.errors import Code, PromptmillError
from promptmill.jobs.rows import plain_template, template
from promptmill.jobs.rows.template import check_names, check_names_some, template_of


def _prompts(bench: Any) -> list[str]:
    return [seen.prompt for seen in bench.upstream.seen]


@pytest.mark.parametrize(
    ("text", "row", "prompt"),
    [
        ("Classify: {{text}}", {"text": "good"}, "Classify: good"),
        ("{{ row['my column'] }}", {"my column": 1}, "1"),
        ("{{a}}{% if b %} and {{b}}{% endif %}", {"a": "x", "b": None}, "x"),
        ("{{a}}", {"a": {"b": [1, "ä"]}}, '{"b":[1,"ä"]}'),
        ("{{a or ''}} {{b}}", {"a": None, "b": True}, " true"),
        ("{{a|default('-', true)}}{{b|d('-', true)}}", {"a": "", "b": None}, "--"),
        ("{{'but ' ~ a if a else ''}}{{b}}", {"a": "", "b": 0}, "0"),
        ("{{a}}", {"a": "{{b}} {% raw %}"}, "{{b}} {% raw %}"),
        ("{{a}}\n", {"a": "x"}, "x\n"),
        ("{{prompt|upper}}", {"prompt": "x"}, "X"),
        ("{{a ~ ' ' ~ b}}{{ a ~ c }}", {"a": "Ann", "b": None, "c": True}, "Ann Anntrue"),
        (
            "{{a|join(', ')}}; {{b|join('/', attribute='c')}}",
            {"a": ["x", True, [1]], "b": [{"c": None}, {"c": 1}]},
            "x, true, [1]; /1",
        ),
        ("{{a|tojson}} {{a|tojson(indent=1)}}", {"a": ["<ü> & 'b'"]}, "[\"<ü> & 'b'\"] [\n \"<ü> & 'b'\"\n]"),
        ("{{a|map('upper')|tojson}} {{b.items()|tojson}}", {"a": ["x"], "b": {"c": 1}}, '["X"] [["c", 1]]'),
    ],
)
def test_a_row_is_written_into_the_template(text, row, prompt):
    assert template_of(text).render(row) == prompt


ORDER = {"items": ["tea", "milk"], "values": 7, "keys": "k", "get": "g", "update": None, "number": 2**70}
ROW = {
    "order": ORDER,
    "name": "anna",
    "tags": [3, 1],
    "lines": [{"title": "A", "items": 1}, {"title": "B", "items": 2}],
}


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("{{order.items}}", '["tea","milk"]'),
        ("{{order.values}}{{order.keys}}{{order.get}}{{order.update}}", "7kg"),
        ("{% for each in order.items %}{{each}};{% endfor %}", "tea;milk;"),
        ("{{order.items|join(',')}} {{order.items|length}}", "tea,milk 2"),
        (
            "{{lines|map(attribute='items')|sum}} {{lines|selectattr('items', 'gt', 1)|map(attribute='title')|first}}",
            "3 B",
        ),
        ("{% for line in lines %}{{loop.index}}{{line.items}}{{loop.cycle('a', 'b')}}{% endfor %}", "11a22b"),
        ("{{row.order.items.0}}", "tea"),
        ("{{order|attr('items')|first}} {{lines|map('attr', 'items')|sum}}", "tea 3"),
    ],
)
def test_a_field_has_its_value_whatever_methods_its_name_is_of(text, prompt):
    assert template_of(text).render(ROW) == prompt


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("{{name.upper()}} {{name.split('n')[0]}}", "ANNA a"),
        (
            "{% for name, value in order.items() %}{{name}}{% if not loop.last %},{% endif %}{% endfor %}",
            ",".join(ORDER),
        ),
        ("{% macro mark(text) %}<{{text}}>{% endmacro %}{{mark(name)}}", "<anna>"),
    ],
)
def test_a_method_is_called_with_brackets(text, prompt):
    assert template_of(text).render(ROW) == prompt


@pytest.mark.parametrize(
    "text", ["{{name.title}}!", "{{tags.count}}!", "{{order|attr('copy')}}!", "{{row.items}}!", "{{lines.0.pop}}!"]
)
def test_a_method_is_no_field(text):
    with pytest.raises(PromptmillError, match=r"has no attribute|unsafe"):
        template_of(text).render(ROW)


@pytest.mark.parametrize("text", ["{% macro mark() %}{% endmacro %}{{mark}}", "{{range}}{{name|upper}}"])
def test_a_function_is_never_a_part_of_a_prompt(text):
    with pytest.raises(PromptmillError, match="a function or a method; call it"):
        template_of(text).render(ROW)


def test_what_a_filter_yields_is_a_list():
    assert template_of("{{lines|map(attribute='title')}} {{order.keys()|first}}").render(ROW) == '["A","B"] items'


@pytest.mark.thorough
def test_a_whole_number_of_any_length_is_written_out_as_it_is(bench):
    number = "277447099861456945273576150847928801582"
    bench.write([f'{{"x": {number}, "l": [{number}, {{"a": -{number}}}]}}'])
    bench.succeed("--prompt", "{{x}} {{l}}")
    bench.succeed("--prompt", "{{l|first}} {{l}}", "--again", "all")
    whole = f'{number} [{number},{{"a":-{number}}}]'
    assert _prompts(bench) == [whole, whole]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("Say {{mail body}}", "mail body"),
        ("Say {{ mail body | trim }}", "mail body"),
        ("Say {{mail body}}", " mail\nbody "),
        ("Say {{-mail-body-}}", "mail-body"),
        ("Say {{2024}}", "2024"),
        ("Say {{Umsatz (€)}}", "Umsatz (€)"),
        ('Say {{it\'s "so"}}', 'it\'s "so"'),
        ("Say {{a|b}}", "a|b"),
        ("Say {{ a|b | trim }}", "a|b"),
        ("Say {{in}}", "in"),
        ("Say {{row.a}}", "row.a"),
    ],
)
def test_a_place_that_is_the_name_of_a_column_means_the_column(text, column):
    made = template_of(text, [column, "mail", "a", "row"])
    row = {column: "tea", "mail": 5, "a": 7}
    assert made.render(row).replace(" ", "") == "Saytea"


@pytest.mark.parametrize(("one", "other"), [("te\u0301xt", "t\u00e9xt"), ("\ufb01", "fi"), ("\uff41", "a")])
def test_columns_whose_names_differ_in_their_unicode_form_alone_are_apart(one, other):
    template = template_of(f"{{{{{one}}}}} {{{{{other}|upper}}}}", [one, other])
    assert template.render({one: "first", other: "second"}) == "first SECOND"


def test_a_prompt_of_a_million_pipes_and_a_thousand_columns_is_looked_at_in_proportion_to_its_length():
    columns = [f"mail {at}" for at in range(1000)]
    with pytest.raises(PromptmillError, match="at most 1,000,000"):
        template_of("{{" + "|" * 1_000_000 + "}}", columns)
    with pytest.raises(PromptmillError, match="is not a template"):
        template_of("{{" + "|" * 900_000 + "}}", columns)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["jsonl", "csv", "rows"])
def test_a_column_has_any_name_in_every_form_of_an_input(bench, form):
    row, prompt = {"mail body": "tea", "Umsatz (€)": "5", "mail": "x", "body": "y"}, "{{mail body}} {{Umsatz (€)}}"
    if form == "rows":
        model = {"model": "m", "base_url": bench.upstream.url, "api_key": "none"}
        assert not promptmill.bulk([row], prompt=prompt, progress=False, **model).failed
    else:
        bench.input = bench.path / f"in.{form}"
        lines = [",".join(row), ",".join(row.values())] if form == "csv" else [json.dumps(row)]
        bench.input.write_text("\n".join(lines))
        bench.succeed("--prompt", prompt)
    assert _prompts(bench) == ["tea 5"]


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("place", ["mail boddy", "mail-boddy"])
def test_a_mistyped_name_is_answered_with_the_nearest_column(bench, form, place):
    bench.input = bench.path / f"in.{form}"
    bench.input.write_text("id,mail body\n1,tea\n" if form == "csv" else '{"id": 1, "mail body": "tea"}\n')
    said = bench.fail("--prompt", f"{{{{{place}}}}}")
    assert f"the input has no column '{place}'; did you mean mail body?" in said


def test_an_expression_with_a_column_of_words_says_how_to_write_it(bench):
    bench.input = bench.path / "in.csv"
    bench.input.write_text("mail body,a\nx,y\n")
    for place in ('{{mail body or "-"}}', "{{mail body ~ a}}", "{{mail body[:1]}}"):
        assert ': in an expression, write row["mail body"] for the column.' in bench.fail("--prompt", place)
    bench.succeed("--prompt", '{{row["mail body"] ~ a}}')


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("{{a}}: {{b}}", ": x"),
        ("{{a | round(1) }}: {{ row.b | upper }}", ": X"),
        ("{% for one in [1] %}{{a}}{{b}}{% endfor %}", "x"),
        ("{{a}}{{ b or '-' }}", "x"),
    ],
)
@pytest.mark.parametrize("cell", [None, float("nan"), "", " ", b""])
def test_an_empty_cell_beside_another_one_leaves_its_place_blank(text, prompt, cell):
    empty: dict[str, str] = {}
    assert template_of(text).render({"a": cell, "b": "x"}, empty) == prompt
    assert [*empty] == ["a"]


@pytest.mark.parametrize("text", ["{{a}}: {{b}}", "{{a | trim}}: {{b}}"])
def test_a_row_whose_places_are_all_empty_asks_nothing(text):
    with pytest.raises(PromptmillError, match="its a and b are empty") as raised:
        template_of(text).render({"a": "", "b": None})
    assert raised.value.code is Code.EMPTY_PROMPT


@pytest.mark.parametrize("text", ["Say {{a}}", "{{ a | trim }}", "{{row.a}}", "{{ row['a'] }}!"])
@pytest.mark.parametrize(("cell", "what"), [(None, "empty"), (float("nan"), "NaN"), ("", "empty"), (" \n", "empty")])
def test_a_cell_that_holds_nothing_is_an_error_unless_the_template_says_what_to_write_instead(text, cell, what):
    with pytest.raises(PromptmillError, match=f"its a is {what}") as raised:
        template_of(text).render({"a": cell})
    assert raised.value.code is Code.EMPTY_PROMPT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Classify", "names no column; write it in double braces"),
        ("Classify {text}", "names no column"),
        ("{{text", "a }} is missing behind"),
        ("{% for x in y %}{{x}}", "is not a template"),
        ("{{" + "(" * 5000 + "a" + ")" * 5000 + "}}", "is nested too deeply"),
        ("{% for x in a %}" * 30 + "{% endfor %}" * 30, "is nested too deeply"),
        ("{{" + "9" * 5000 + "}}{{a}}", "a number that is too large"),
        ("{{a|upper}}" * 5000, "has more than 5,000 placeholders"),
        ("x" * 1_000_001, "at most 1,000,000"),
    ],
)
def test_what_is_not_a_template_of_columns_is_told(text, said):
    def check() -> None:
        template_of(text)
        check_names_some(text, str)

    with pytest.raises(PromptmillError, match=said):
        check()


@pytest.mark.parametrize(
    "text", ["{{ a.__class__.__mro__ }}", "{{ a|attr('__class__') }}", "{{ range(10**9) | list }}", "{{ 1 / 0 }}"]
)
def test_a_template_stays_in_its_sandbox_and_its_failure_is_the_rows(text):
    with pytest.raises(PromptmillError, match="`prompt`"):
        template_of(text).render({"a": "x"})


@pytest.mark.parametrize("text", ["{{ 'x' * 50000000 }}", "{% set b = 'x'|center(50000000) %}", "{{ 9 ** (9 ** 9) }}"])
def test_a_server_that_checks_a_template_computes_nothing_in_it(text):
    tracemalloc.start()
    try:
        template_of(text + "{{a}}")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_prompt_that_no_line_holds_is_the_rows_failure_before_all_of_it_is_written(monkeypatch):
    monkeypatch.setattr(template, "LONGEST_ROW", 1000)
    endless = template_of("{% for _ in range(99999) %}{% for _ in range(99999) %}{{a}}{% endfor %}{% endfor %}")
    with pytest.raises(PromptmillError, match="makes a prompt that is longer than 64 MiB"):
        endless.render({"a": "x"})
    monkeypatch.setattr(plain_template, "LONGEST_ROW", 1000)
    plain = template_of("{{a}}")
    assert plain.render({"a": "x" * 1000}) == "x" * 1000
    with pytest.raises(PromptmillError, match="makes a prompt that is longer than 64 MiB"):
        plain.render({"a": "x" * 1001})


def test_a_row_that_lacks_a_field_costs_the_others_nothing(bench):
    bench.write([{"text": "a"}, {"other": "b"}, {"text": "c"}])
    result = bench.run("--prompt", "{{text}}")
    assert result.returncode == 1
    assert [row["answer"] for row in bench.answers()] == ["echo: a", "", "echo: c"]
    assert bench.answers()[1]["error"]["message"].startswith("line 2: `prompt`: 'text' is undefined")


@pytest.mark.thorough
def test_a_row_asks_what_is_written_out_not_what_the_template_says(bench):
    """So that a row whose prompt is the same is not asked again, and one with another prompt is."""
    bench.write([{"id": 1, "text": "a"}, {"id": 2, "text": "b"}])
    bench.succeed("--prompt", "{{text}}")
    bench.write([{"id": 3, "text": "b"}, {"id": 4, "text": "a"}, {"id": 5, "text": "c"}])
    bench.succeed("--prompt", "{{text}}")
    assert sorted(_prompts(bench)) == ["a", "b", "c"]
    assert [row["answer"] for row in bench.answers()] == ["echo: b", "echo: a", "echo: c"]


@pytest.mark.thorough
def test_another_prompt_is_another_job_unless_it_is_meant(bench):
    bench.write([{"text": "a"}, {"text": "bad"}])
    bench.succeed("--prompt", "{{text}}", "--limit", "1")
    said = "was another one, and the new one keeps 0 of the 1 answers"
    before = bench.folder.status
    assert said in bench.fail("--prompt", "Say {{text}}")
    assert bench.folder.status == before, "the job is still finished"
    bench.succeed("--prompt", "Say {{text}}", "--keep")
    assert _prompts(bench) == ["a", "Say bad"]
    assert said.replace("1", "2") in bench.fail("--prompt", "{{text}}!")
    bench.succeed("--prompt", "Say {{text}}", "--again", "all")
    assert sorted(_prompts(bench)[2:]) == ["Say a", "Say bad"]  # both are in flight at once


def test_the_prompt_may_come_from_a_file(bench):
    bench.write([{"text": "a"}])
    (bench.path / "prompt.txt").write_text("Classify:\n{{text}}\n")
    bench.succeed("--prompt-file", str(bench.path / "prompt.txt"))
    assert _prompts(bench) == ["Classify:\na"]


@pytest.mark.parametrize(
    ("place", "columns"),
    [
        ("text", ["text ", "text"]),
        ("text|trim", ["\xa0text", "text"]),
        ("mail body", ["mail  body", "mail body"]),
        ("Größe", ["id", "Gro\u0308ße"]),
        ("text", ["id", "\u200btext"]),
        ("text", ["\ufeff\ufefftext", "id"]),
        ("text", ["id", "te\xadxt"]),
    ],
)
def test_a_place_means_the_column_of_its_name_or_else_the_one_that_looks_like_it(place, columns):
    template = template_of(f"{{{{{place}}}}}", columns)
    assert template.render({columns[0]: columns[0], columns[1]: columns[1]}) == (
        columns[0] if columns[0].startswith("\ufeff") else columns[1]
    )


def test_an_expression_with_a_name_that_only_looks_like_a_column_names_the_sign():
    with pytest.raises(PromptmillError, match=r"one that looks like it \(U\+200B ZERO WIDTH SPACE\); rename it"):
        check_names(["text"], ["id", "\u200btext"])
