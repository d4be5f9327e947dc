"""`--fields`, and labels with definitions."""

import json

import pytest

import promptmill
from promptmill.answers.form import form_of_schema
from promptmill.core.errors import PromptmillError
from promptmill.core.form import Scale
from promptmill.jobs.inputs.short_forms import answer_forms, labels_of, named_schema, schema_of_fields
from replies import answer


def test_fields_in_one_line_are_a_schema():
    schema = schema_of_fields("customer!, amount: number, date:date?, kind:a | b, size:S|M!, tags:list, names:list!")
    assert schema == {
        "type": "object",
        "properties": {
            "customer": {"type": "string"},
            "amount": {"type": ["number", "null"]},
            "date": {"type": ["string", "null"], "format": "date"},
            "kind": {"enum": ["a", "b", None]},
            "size": {"enum": ["S", "M"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "names": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
        "required": ["customer", "amount", "date", "kind", "size", "tags", "names"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,,b", "'' is no field"),
        ("a:numbr", "no type 'numbr'; did you mean number?"),
        ("a:x", "the types are text, number"),
        ("a,a", "The field a is there twice"),
        ("a!:number", "'a!:number' is no field"),
        ("a:number!?", "no type 'number!'"),
    ],
)
def test_a_wrong_field_is_answered_with_the_remedy(text, said):
    with pytest.raises(PromptmillError, match=said):
        schema_of_fields(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "label,definition\ngood,It praises.\nbad,It complains.\n"),
        ("labels.csv", "Category;Kommentar\ngood;It praises.\nbad;It complains.\n"),
        (
            "labels.jsonl",
            '{"description": "It praises.", "name": "good"}\n{"name": "bad", "description": "It complains."}',
        ),
    ],
)
def test_labels_and_their_definitions_are_read_from_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    labels = labels_of(tmp_path / name)
    assert labels.texts == ["good", "bad"]
    assert labels.definitions == {"good": "It praises.", "bad": "It complains."}


@pytest.mark.parametrize("text", ["good\nbad\nnew\n", "good;It praises.\nbad;It complains.\n"])
def test_a_first_label_is_not_taken_for_the_name_of_a_column(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(PromptmillError, match=r"has no column `label`: its first line is 'good.*'; write label"):
        labels_of(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "text", ['{"good": "It praises.", "bad": ""}', '["good", "bad"]', ' [ "good","bad" ]', '"good",bad', "good, bad"]
)
def test_labels_may_be_json_text(text):
    labels = labels_of(text)
    assert labels.texts == ["good", "bad"]
    assert labels.definitions == ({"good": "It praises.", "bad": ""} if "praises" in text else {})


def test_labels_that_begin_as_json_are_not_divided_at_commas():
    with pytest.raises(PromptmillError, match=r"The choices cannot be read: it is not JSON: .*closing bracket"):
        labels_of('{"good": "It praises.", "bad": "It complains."')
    with pytest.raises(PromptmillError, match="at least two different texts"):
        labels_of('{"good": "It praises.", "good": "It complains."}')
    with pytest.raises(PromptmillError, match="The choices cannot be read: it is nested too deeply"):
        labels_of('["a", ' + "[" * 100_000)
    assert labels_of("[a],[b]").texts == ["[a]", "[b]"]


@pytest.mark.parametrize("definition", ['{"x": "y"}', '["l"]', "true"])
def test_a_definition_is_text(definition):
    with pytest.raises(PromptmillError, match="The definition of the choice good should be text"):
        labels_of(f'{{"good": {definition}, "bad": ""}}')


def test_a_label_that_is_null_is_no_label_none(tmp_path):
    (tmp_path / "labels.json").write_text('[{"label": null}, {"label": "good"}, {"label": "bad"}]')
    with pytest.raises(PromptmillError, match="at least two different texts"):
        labels_of(tmp_path / "labels.json")


def test_a_schema_may_be_json_text():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert named_schema(json.dumps(schema)) == schema
    with pytest.raises(PromptmillError, match=r"The schema cannot be read: it is not JSON"):
        named_schema('{"type": "object"')
    with pytest.raises(PromptmillError, match=r"The schema .*objekt"):
        named_schema('{"type": "objekt"}')


def test_a_list_of_labels_has_no_definitions(tmp_path):
    (tmp_path / "labels.txt").write_text("good\nbad\n")
    assert labels_of(tmp_path / "labels.txt") == labels_of("good, bad") == (["good", "bad"], {})


def test_several_labels_may_be_the_answer(bench):
    bench.write([{"text": "nice"}])
    bench.upstream.reply = answer('{"labels": ["good", "new"]}')
    bench.succeed("--prompt", "{{text}}", "--choices", "good,bad,new", "--choices-many")
    assert bench.answers()[0]["answer"] == {"labels": ["good", "new"]}
    assert "--choices-many needs --choices" in bench.fail("--prompt", "{{text}}", "--choices-many")


def test_an_empty_schema_is_none(bench):
    bench.write([{"text": "nice"}])
    (bench.path / "any.json").write_text("{}")
    bench.succeed("--prompt", "{{text}}", "--schema", str(bench.path / "any.json"))
    assert bench.answers()[0]["answer"] == "echo: nice"
    assert answer_forms({"schema": {}, "choices": ["a", "b"]}) == {"schema": None, "choices": ["a", "b"]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fields": "name", "schema": {"type": "object"}}, "`schema` cannot be used with `fields`"),
        ({"choices": ["a", "b"], "schema": {"type": "object"}}, "`choices` cannot be used with `schema`"),
        ({"each": "line"}, "`each` works only for files and folders"),
    ],
)
def test_an_option_in_python_that_cannot_take_effect_is_refused(options, said):
    with pytest.raises(PromptmillError, match=said):
        promptmill.bulk(["France"], model="m", progress=False, **options)


def test_a_field_may_have_the_name_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "invoice").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named_schema("invoice") == schema_of_fields("invoice")


@pytest.mark.thorough
def test_fields_is_the_short_name_of_schema(bench):
    wanted = schema_of_fields("amount:number")
    file = bench.path / "wanted.json"
    file.write_text(json.dumps(wanted))
    bench.prompts(1)
    bench.upstream.reply = answer('{"amount": 1}')
    for given in (str(file), json.dumps(wanted), "amount:number"):
        bench.run("--fields", given, "--overwrite")
        assert bench.upstream.seen[-1].json["response_format"]["json_schema"]["schema"] == wanted


@pytest.mark.thorough
def test_python_has_the_same_short_forms(bench):
    bench.upstream.reply = answer(json.dumps({"name": "Paris", "people": 2}))
    options = {"model": "m", "base_url": bench.upstream.url, "api_key": "none", "progress": False}
    found = promptmill.bulk(["France"], fields="name,people:integer", **options)
    assert found.answers == [{"name": "Paris", "people": 2}]
    bench.upstream.reply = answer('{"answer": "good"}')
    found = promptmill.bulk(["nice"], choices={"good": "It praises.", "bad": "It complains."}, **options)
    assert found.answers == ["good"]
    assert "It praises." in bench.upstream.seen[-1].json["messages"][0]["content"]


def test_parentheses_divide_fields_only_in_a_list_of_rows():
    assert [*schema_of_fields("mood::)|:(,1) name,price (EUR):number")["properties"]] == [
        "mood",
        "1) name",
        "price (EUR)",
    ]


def test_levels_of_a_scale_are_in_order():
    schema = schema_of_fields("mood:calm < annoyed<furious,stress:low<high!")
    assert schema["properties"] == {
        "mood": {"enum": ["calm", "annoyed", "furious", None], "$comment": "from the lowest to the highest"},
        "stress": {"enum": ["low", "high"], "$comment": "from the lowest to the highest"},
    }
    form = form_of_schema(schema, {})
    assert form is not None
    assert [one.kind for one in form.questions] == [
        Scale(("calm", "annoyed", "furious"), is_optional=True),
        Scale(("low", "high")),
    ]


@pytest.mark.parametrize("kind", ["low<", "<high", "low<low", "low<<high", "low|middle<high", "<"])
def test_a_scale_has_different_levels(kind):
    with pytest.raises(PromptmillError, match="is no scale; write different levels from the lowest to the highest"):
        schema_of_fields(f"mood:{kind}")
