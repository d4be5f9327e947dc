"""JSON is taken from the text of an answer only where there is no doubt."""

import json
import time

import pytest

from promptmill.answers.json_in_text import value_at_end
from promptmill.answers.schema import compile_schema


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('```json\n{"city": "Paris"}\n```', {"city": "Paris"}),
        ('```\n{"city": "Paris"}\n```', {"city": "Paris"}),
        ('Sure! Here it is:\n\n{"city": "Paris", "n": 3}\n\nI hope this helps.', {"city": "Paris", "n": 3}),
        ('Here:\n```json\n{"city": "Paris",}\n```\nDone.', {"city": "Paris"}),
        ('{"city": "Paris", "tags": ["a", "b",],}', {"city": "Paris", "tags": ["a", "b"]}),
        ('{"city": "Rio\nde\tJaneiro"}', {"city": "Rio\nde\tJaneiro"}),  # line breaks that are not escaped
        ("{'city': 'Paris', 'tags': ['a']}", {"city": "Paris", "tags": ["a"]}),
        ('{city: "Paris"}', {"city": "Paris"}),
        ('{"city": "x" "n": 5}', {"city": "x", "n": 5}),
        ('{"city": "He said "hi" to me"}', {"city": 'He said "hi" to me'}),
        ('{"city": "Paris", "n": null}', {"city": "Paris"}),  # what strict endpoints write for a field left out
        ('{"city": "a"} or, again, {"city": "a"}', {"city": "a"}),
        ('"{\\"city\\": \\"a\\"}"', {"city": "a"}),  # JSON as a text of JSON
        ('{"city": "Paris"}}', {"city": "Paris"}),
        ('```json\n{"city": "Paris"}', {"city": "Paris"}),
        ('[see {"city": "Paris"}}', {"city": "Paris"}),  # another bracket closes none of prose
        ('As [1] says {see below} of [0, 1) [sic]: {"city": "Paris"} (from [2]).', {"city": "Paris"}),
        ('The result is {"city": "Paris"}, as requested.\n1. Paris is large.', {"city": "Paris"}),
        ('I could not find a number.\n\n{"city": "Paris"}\n\nNote: the tags are not given.', {"city": "Paris"}),
    ],
)
def test_what_leaves_no_doubt_is_repaired(city, text, value):
    checked = city.check(text)
    assert (json.loads(checked.text), checked.problem, checked.repaired) == (value, "", True)


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Par',
        '{"city": "Paris", "n": 5',
        '{"city": "a"} or {"city": "b"}',
        '{"city": "a", "n": - 5,}',
        '{"city": "a", "n": NaN}',
        '{"city": "P" /* not sure */}',
        '{"city": "a", "n": 1.5.2,}',
        '[{"city": "a"}]',
        "Paris",
        "",
        "[" * 100_000,
    ],
)
def test_what_leaves_a_doubt_is_not_repaired(city, text):
    checked = city.check(text)
    assert checked.problem
    assert checked.text == text


ITEMS = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"type": "object", "required": ["a"]}},
        "b": {"type": "integer"},
    },
    "required": ["items"],
}


@pytest.mark.parametrize(
    "text",
    [
        '{"items": [{"a": 1}, {"a": 2}, {"a":',
        '{"items": [{"a": 1}, {"a": 2}',
        '{"items": [{"a": 1}, {"a": 2}]',
        '{"items": [{"a": 1}, {"a": 2}, ',
        "{'items': [{'a': 1}, {'a': 2}",
        '```json\n{"items": [{"a": 1}, {"a": 2}\n```',
        '{"items": [{"a": 1}]}\nCorrected: {"items": [{"a": 1}, {"a": 2}',
        '```json\n{"items": [{"a": 1}]}\n```\n```json\n{"items": [{"a": 2}',
        '{"items": [{"a": "}]}", "b": 5',
    ],
)
def test_an_answer_that_ends_in_the_middle_is_not_repaired_to_a_shorter_one(text):
    assert compile_schema(ITEMS).check(text).problem


@pytest.mark.parametrize(
    "text",
    [
        '{"items": [{"a": 1}]}, "b": 2}',
        '{"items": [{"a": 1}]}, b: 2}',
        '{"items": [{"a": 1}]} "b": 2}',
        '{"items": [{"a": 1}]}, {"a": 2}]}',
        "{'items': [{'a': 'x } y'}], 'b': 1}",
        '{"items": [{"a": 1}]}\n{"items": [{"a": - 5}]}',
        '{"items": [{"a": 1}]} and {"a": 2}',
        '{"items": [{"a": 1}]} ...',
        '{"items": [{"a": 1}]}, … 2',
    ],
)
def test_an_answer_that_goes_on_behind_the_json_is_not_repaired(text):
    assert compile_schema(ITEMS).check(text).problem


@pytest.mark.parametrize("text", ["[1, 2] and 3", "[1, 2]; 3; 4", "[1, 2] 3", "[1, 2] und noch 3"])
def test_a_list_whose_numbers_go_on_behind_it_is_not_repaired(text):
    assert compile_schema({"type": "array", "items": {"type": "integer"}}).check(text).problem


def test_a_number_in_a_code_fence_that_its_text_denies_is_not_the_answer():
    known = compile_schema({"type": "integer"})
    assert known.check("```\n5\n```\nThat is wrong.").problem == "its words deny the JSON value in it"
    assert known.check("The number:\n```\n5\n```").text == "5"


def test_an_example_in_a_code_fence_is_not_the_answer_behind_it(city):
    assert city.check('Example:\n```json\n{"city": "x"}\n```\nAnswer: {\'city\': "Paris"}').problem


@pytest.mark.parametrize(
    "text",
    [
        'The answer is not {"city": "Rome"}.',
        'It can\'t be {"city": "Rome"}',
        'This is wrong:\n```json\n{"city": "Rome"}\n```',
        '{"city": "Rome"} would be incorrect; I cannot tell.',
        '{"city": "Rome"}? I do not know.',
        '{"city": "Rome"}. No, that is another one.',
        '{"city": "Rome"}\n\nWait, I have to look again.',
        '```json\n{"city": "Rome"}\n```\nThat is not correct.',
        "It isn't {'city': 'Rome'}.",
        'Die Antwort ist nicht {"city": "Rome"}.',
        'Ce n\'est pas {"city": "Rome"}.',
        'No es {"city": "Rome"}.',
        '答案不是 {"city": "Rome"}',
        'This is wrong:\n```\n{"city": "Rome"}\n```',
        '```\nx = 1\n```\nThe answer is not {"city": "Rome"}',
        'The answer is not {"city": "Rome"}' + ", as I said" * 100,
    ],
)
def test_an_object_that_its_text_denies_is_not_the_answer(city, text):
    assert city.check(text).problem == "its words deny the JSON value in it"


@pytest.mark.parametrize(
    "text",
    [
        'I did not add a field. {"city": "Rome"}',
        '{"city": "Rome"}\nNo further comments.',
        '{"city": "Rome"}\nNot included: the country.',
    ],
)
def test_a_no_about_something_else_denies_nothing(city, text):
    assert city.check(text).repaired


@pytest.mark.thorough
def test_an_answer_of_many_brackets_is_read_in_time_in_proportion_to_its_length(city):
    assert city.check("[a " * 100_000).problem
    assert city.check("{'a " * 100_000).problem


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"$\frac{a}{\beta}$", r"$\frac{a}{\beta}$"),
        (r"$\\frac{a}{\\beta}$", r"$\frac{a}{\beta}$"),
        (r"\\\frac", r"\\frac"),
        (r"page 1\fPage 2\n\b", "page 1\fPage 2\n\b"),
    ],
)
def test_latex_with_one_backslash_is_no_control_character(written, read):
    text = f'{{"formula": "{written}"}}'
    schema = compile_schema({"type": "object", "properties": {"formula": {"type": "string"}}, "required": ["formula"]})
    checked = schema.check(text)
    assert (json.loads(checked.text), checked.problem) == ({"formula": read}, "")
    assert checked.repaired is (checked.text != text)
    assert schema.is_soon_valid(text) is not checked.repaired


@pytest.mark.parametrize("language", ["", "json", "JSON", " json", "json5", "JSON5", "jsonc", "JSONC"])
def test_a_number_in_a_code_fence_is_read_without_the_name_of_its_language(language):
    checked = compile_schema({"type": "integer"}).check(f"The number:\n```{language}\n5\n```")
    assert (checked.text, checked.problem) == ("5", "")


@pytest.mark.parametrize("text", ['Here: {"n": NaN}', '{"n": NaN}', "[" * 100_000 + "]" * 100_000])
def test_constants_and_depths_that_json_does_not_know_never_pass_an_open_schema(text):
    for schema in (compile_schema({}), compile_schema({"type": ["object", "null"]})):
        assert schema.check(text).problem
        assert not schema.is_soon_valid(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'city': 'Orl\\u00e9ans'}", {"city": "Orl\u00e9ans"}),
        ("{'city': '\\ud83d\\ude00'}", {"city": "\U0001f600"}),
        ("{'city': True, 'n': None}", {"city": True, "n": None}),
        ("{'city': FALSE,}", {"city": False}),
    ],
)
def test_escapes_and_words_of_python_are_read_in_a_repaired_answer(text, value):
    assert json.loads(compile_schema({"required": ["city"]}).check(text).text) == value


@pytest.mark.parametrize("value", ['{"n": 1e999}', '{"n": -1e999} or {"n": 5}', '{"n": "\\ud83d"}'])
def test_a_value_that_cannot_be_written_as_json_is_no_answer(value):
    checked = compile_schema({"type": "object"}).check(f"Here: {value}")
    assert checked.problem == "JSON cannot represent a number or a character in it"


def test_an_answer_with_a_constant_that_json_does_not_know_is_in_doubt():
    schema = compile_schema({"properties": {"n": {"type": "integer"}}})
    assert schema.check('Here: {"n": NaN} or {"n": 5}').problem
    assert schema.check('Here: {"n": "five"} or {"n": 5}').repaired


def test_letters_of_a_repaired_answer_stay_as_they_are(city):
    assert city.check("{'city': 'Orl\u00e9ans'}").text == '{"city": "Orl\u00e9ans"}'


def test_an_answer_with_more_than_a_hundred_brackets_of_prose_is_in_doubt(city):
    assert city.check("[0, 1) " * 100 + '{"city": "Paris"}').repaired
    assert city.check("[0, 1) " * 101 + '{"city": "Paris"}').problem


def test_a_bracket_of_prose_may_stand_right_before_a_value():
    assert compile_schema({"type": "array"}).check('Sad :{["a"]').text == '["a"]'


@pytest.mark.parametrize("text", ["on [0, 1) there", "{see below}", "[x {y}"])
def test_a_bracket_of_prose_is_no_null(text):
    assert compile_schema({"type": "null"}).check(text).problem


@pytest.mark.thorough
def test_a_long_answer_with_slips_is_repaired():
    text = '{"rows": [' + '{"name": "Ada", "n": [1, 2, 3],},' * 3_000 + "]}"
    assert compile_schema({"type": "object"}).check(text).repaired


DENIALS = [
    *("not", "never", "cannot", "nor", "neither", "wrong", "incorrect", "invalid", "instead of", "rather than"),
    *("nicht", "kein", "keine", "falsch", "falsche", "statt", "pas", "jamais", "faux", "fausse"),
    *("no es", "no son", "nunca", "incorrecta", "não", "errado", "non", "sbagliato"),
    *("не", "нет", "неверно", "неправильно", "isn't", "isn\u2019t"),
]


@pytest.mark.parametrize(
    "word", [*DENIALS, "不", "没", "沒", "非", "错", "錯", "ない", "ません", "違う", "間違い", "아니", "않"]
)
def test_each_word_of_denial_before_an_object_denies_it(city, word):
    assert city.check(f'x {word} {{"city": "Rome"}}').problem == "its words deny the JSON value in it"
    assert city.check(f'x {word.upper()} {{"city": "Rome"}}').problem == "its words deny the JSON value in it"


@pytest.mark.parametrize(
    "words",
    [
        *(
            "?",
            "\uff1f",
            "no,",
            "nein.",
            "non!",
            "não:",
            "нет;",
            "不\uff0c",
            "wait",
            "actually",
            "sorry",
            "correction",
            "oops",
            "hmm",
        ),
        *("that is wrong", "this is wrong", "it is wrong", "which is wrong", "das ist falsch", "dies ist falsch"),
        *("ce n'est pas", "c'est faux", "eso no es", "esto no es", "this is the one that is not"),
    ],
)
def test_words_behind_an_object_take_it_back(city, words):
    assert city.check(f'{{"city": "Rome"}}\n{words}').problem == "its words deny the JSON value in it"


@pytest.mark.parametrize("words", ["no", "notable", "that is right", "waiting", "x. It is wrong", "x it is wrong"])
def test_other_words_behind_an_object_leave_it(city, words):
    assert city.check(f'{{"city": "Rome"}}\n{words}').repaired


@pytest.mark.parametrize("end", [". ", "! ", "? ", ".\n", "。", "\n"])
def test_a_denial_in_the_sentence_before_denies_nothing(city, end):
    assert city.check(f'I did not look{end}Here: {{"city": "Rome"}}').repaired


@pytest.mark.parametrize(
    "words",
    [
        *("and", "plus", "und", "sowie", "et", "y", "e"),
    ],
)
def test_an_object_that_is_joined_to_another_value_is_in_doubt(city, words):
    for value in ('"Paris"', "'Paris'", "5", "more than 5"):
        assert city.check(f'{{"city": "Rome"}} {words} {value}').problem
    assert city.check(f'{{"city": "Rome"}} {words} so on.').repaired


@pytest.mark.parametrize(
    "behind",
    [
        *(
            ' "n": 5',
            ', "n": 5',
            ", n: 5",
            ", 'n",
            ", 5",
            ", {",
            ", [",
            '", more',
            "', more",
            '": more',
            '"}',
            '"]',
            '"n": 5',
        ),
        *("...", " ...", "…", "; 5", ", -5", ' "5', " -5"),
        *(" more }", " more ]"),
    ],
)
def test_an_object_that_goes_on_behind_its_end_is_in_doubt(city, behind):
    assert city.check(f'Here: {{"city": "Rome"}}{behind}').problem


@pytest.mark.parametrize("command", ["frac", "forall", "fbox", "flat", "frown", "beta", "bar"])
def test_each_command_of_latex_that_json_reads_as_a_control_character_is_kept(command):
    schema = compile_schema({"properties": {"formula": {"type": "string"}}, "required": ["formula"]})
    checked = schema.check(f'{{"formula": "$\\{command} x$"}}')
    assert json.loads(checked.text) == {"formula": f"$\\{command} x$"}


def test_an_answer_with_latex_that_breaks_its_schema_or_is_cut_off_stays_as_it_was_written():
    schema = compile_schema({"properties": {"n": {"type": "integer"}}, "required": ["n"]})
    text = r'{"n": "\frac"}'.replace("\\\\", "\\")
    assert schema.check(text)[::2] == (text, False)
    assert schema.check(text).problem
    cut = '```json\n{"n": 5, "x": "\\frac"}\n``'
    assert schema.check(cut, complete=False).problem
    assert schema.check(cut).repaired


@pytest.mark.parametrize(
    ("reasoning", "value"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('I answer {"a": 1}', '{"a": 1}'),
        ('The user wants the city. It is Paris.\n\n```json\n{"a": {"b": [1]}}\n```\n', '{"a": {"b": [1]}}'),
        ("It may be 1 [see above]. So the final list is [1, 2].", "[1, 2]"),
        # drafts and doubts
        ('Perhaps {"a": 1}', ""),
        ('For example, {"a": 1}.', ""),
        ('The format is {"a": 1}.', ""),
        ('The answer is not {"a": 1}', ""),
        ('{"a": 1}?', ""),
        ('{"a": 2} is wrong, so {"a": 1}', ""),
        ('{"a": 1}. Or no.', ""),
        ('\u53ef\u80fd\u662f {"a": 1}', ""),
        # no value at the end
        ('I answer {"a": 1', ""),
        ("I answer 1", ""),
        ('I answer {"a": 1,}', ""),
        ("}", ""),
        ("", ""),
    ],
)
def test_a_reasoning_is_an_answer_only_if_it_ends_with_its_one_value(reasoning, value):
    assert value_at_end(reasoning) == value


@pytest.mark.parametrize(
    "words",
    [
        *("Perhaps", "It may be, maybe,", "It might be", "It could be", "Possibly", "It is possible:", "I guess"),
        *("A draft", "For example,", "It is e.g.", "Values, e.g.,", "Values such as", "Something like", "5 or"),
        *("So if", "Its schema", "The format is", "Vielleicht", "Also etwa", "Dies oder", "Und wenn", "Zum Beispiel"),
        *("可能是", "也许", "或许", "或者", "例如", "比如", "如果", "格式"),
    ],
)
def test_a_value_behind_words_of_a_draft_is_no_answer(words):
    assert value_at_end(f'I answer. {words} {{"a": 1}}') == ""
    assert value_at_end(f'{words} no value. I answer {{"a": 1}}') == '{"a": 1}'


@pytest.mark.parametrize(("length", "is_found"), [(100, True), (60_000, True), (70_000, False)])
def test_a_reasoning_ends_with_a_value_of_at_most_64_kilobytes(length, is_found):
    value = f'{{"a": "{"x" * length}"}}'
    assert value_at_end(f"I answer {value}") == (value if is_found else "")


def test_a_long_reasoning_is_read_in_linear_time():
    began = time.process_time()
    assert value_at_end("[" * 1_000_000 + '{"a": 1}') == ""
    assert value_at_end("So it is. " * 100_000 + '{"a": 1}') == '{"a": 1}'
    assert time.process_time() - began < 2.0
