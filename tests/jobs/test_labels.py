"""A table answered into a labelled table: choices, fields of a schema as columns, images of a column."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from PIL import Image

from promptmill.backends.protocol import Completion
from promptmill.jobs.inputs.any_format import objects_in
from promptmill.jobs.inputs.short_forms import schema_of_many
from replies import answer, by_prompt, choose, status
from tables import read_rows


def picture(color: int) -> bytes:
    """Return a PNG of one pixel."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_choices_label_a_table_with_the_word_alone(bench):
    bench.input, bench.output = bench.path / "reviews.csv", bench.path / "labels.csv"
    bench.input.write_text("id,text\n1,Fine\n2,Bad\n3,Hm\n")
    bench.upstream.reply = by_prompt(
        {"Mood: Fine": answer('{"answer": "positive"}'), "Mood: Bad": answer("Negative.")},
        otherwise=answer("It is neither positive nor negative."),
    )
    options = ["--prompt", "Mood: {{text}}", "--choices", "positive,negative, neutral"]
    assert "1 failed" in bench.fail(*options, code=1)
    rows = read_rows(bench.output)
    assert [(row["id"], row["answer"]) for row in rows] == [("1", "positive"), ("2", "negative"), ("3", "")]
    assert "is none of the choices positive, negative, neutral" in rows[2]["error"]
    schema = bench.upstream.seen[0].json["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["positive", "negative", "neutral"]


def test_other_choices_are_another_sampling(bench):
    bench.prompts(2)
    bench.upstream.reply = answer("a")
    bench.succeed("--choices", "a,b")
    assert "the choices are others" in bench.fail("--choices", "a,c")
    bench.upstream.reply = answer("c")
    bench.succeed("--choices", "a,c", "--again", "all")
    assert [row["answer"] for row in bench.answers()] == ["c", "c"]


def test_choices_that_cannot_be_used_are_refused_by_the_options_name(bench):
    bench.prompts(2)
    assert "--choices: The choices should be at least two different texts" in bench.fail("--choices", "a")
    assert "not allowed with" in bench.fail("--choices", "a,b", "--schema", "x.json")
    assert not bench.upstream.seen


ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer"},
        "price": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "gift": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {"type": "object", "properties": {"zip": {"type": "string"}, "city": {"type": "string"}}},
        "kind": {"$ref": "#/$defs/Kind"},
    },
    "required": ["name"],
    "$defs": {"Kind": {"enum": ["new", "old"]}},
}
FULL = (
    '{"kind": "new", "address": {"city": "Köln",\n "zip": "5"}, "tags": ["a", "b"], "gift": true, "price": 3,'
    ' "count": 2.0, "name": "Ada, \\"A\\""}'
)


@pytest.fixture
def orders(bench: Any) -> Any:
    """Three orders as text, of which the second has few fields and the third fails; `run` answers them into a file."""
    (bench.path / "order.json").write_text(json.dumps(ORDER))
    bench.upstream.reply = by_prompt(
        {"one": answer(FULL), "two": answer('{"price":null,"name":"Bob"}')}, otherwise=answer("no")
    )

    def run(output: str, *options: str, source: str = "in.txt") -> None:
        bench.input, bench.output = bench.path / source, bench.path / output
        if source == "in.txt":
            bench.input.write_text("one\ntwo\nthree\n")
        result = bench.run("--schema", str(bench.path / "order.json"), *options)
        assert result.returncode == 1, result.stderr
        assert "Traceback" not in result.stderr

    bench.answer_into = run
    return bench


def test_fields_of_a_schema_are_columns(orders):
    orders.answer_into("out.csv")
    first, second, third = read_rows(orders.output)
    names = ["prompt", *ORDER["properties"], "error", "usage", "finish_reason"]
    assert list(first) == names
    assert [first[name] for name in names[:8]] == [
        *("one", 'Ada, "A"', "2", "3", "true", '["a","b"]', '{"zip":"5","city":"Köln"}', "new")
    ]
    assert [second[name] for name in names[1:9]] == ["Bob", *[""] * 7]
    assert [third[name] for name in names[1:8]] == [""] * 7
    assert third["error"].startswith("invalid_answer: ")


def test_fields_of_a_schema_are_objects_in_json_or_texts_of_one_form(orders):
    value = {
        "name": 'Ada, "A"',
        "count": 2,
        "price": 3,
        "gift": True,
        "tags": ["a", "b"],
        "address": {"zip": "5", "city": "Köln"},
        "kind": "new",
    }
    orders.answer_into("out.jsonl")
    assert [row["answer"] for row in orders.answers()] == [value, {"name": "Bob", "price": None}, None]
    orders.answer_into("text.jsonl", "--no-fields")
    written = [row["answer"] for row in orders.answers()]
    assert written == [json.dumps(value, separators=(",", ":"), ensure_ascii=False), '{"name":"Bob","price":null}', ""]
    orders.answer_into("text.csv", "--no-fields")
    assert [row["answer"] for row in read_rows(orders.output)] == written


def test_fields_of_a_schema_are_typed_columns_in_parquet(orders):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"prompt": ["one", "two", "three"], "name": [1, 2, 3]}), orders.path / "in.parquet")
    orders.answer_into("out.parquet", source="in.parquet")
    found = parquet.read_table(orders.output)
    types = {"name": pa.int64(), "name_1": pa.string(), "count": pa.int64(), "price": pa.float64(), "gift": pa.bool_()}
    types |= {"tags": pa.list_(pa.string()), "address": pa.string(), "kind": pa.string()}
    assert {name: found.schema.field(name).type for name in types} == types
    assert "answer" not in found.schema.names
    assert found["name_1"].to_pylist() == ['Ada, "A"', "Bob", None]
    assert found["count"].to_pylist() == [2, None, None]
    assert found["price"].to_pylist() == [3.0, None, None]
    assert found["tags"].to_pylist() == [["a", "b"], None, None]
    assert found["address"].to_pylist() == ['{"zip":"5","city":"Köln"}', None, None]


def test_a_change_to_no_fields_writes_the_output_again_and_sends_nothing(orders):
    orders.answer_into("out.csv")
    orders.upstream.reply = answer("no")
    orders.answer_into("out.csv", "--no-fields")
    assert list(read_rows(orders.output)[0]) == ["prompt", "answer", "error", "usage", "finish_reason"]
    orders.answer_into("out.csv")
    assert read_rows(orders.output)[0]["name"] == 'Ada, "A"'


def test_a_field_with_the_name_of_a_column_gets_a_number(bench):
    fields = {name: {"type": "string"} for name in ("answer", "error", "id")}
    (bench.path / "s.json").write_text(json.dumps({"type": "object", "properties": fields}))
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("id,prompt\n1,hi\n")
    bench.upstream.reply = answer('{"answer": "a", "error": "e", "id": "i"}')
    bench.succeed("--schema", str(bench.path / "s.json"))
    (row,) = read_rows(bench.output)
    assert [row[name] for name in ("id", "answer", "error", "error_1", "id_1")] == ["1", "a", "", "e", "i"]


@pytest.mark.thorough
def test_answers_without_the_schema_are_not_kept(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("prompt\nhi\n")
    bench.upstream.reply = answer("free text")
    bench.succeed()
    (bench.path / "s.json").write_text(json.dumps({"type": "object", "properties": {"name": {}}}))
    assert "the column name is new" in bench.fail("--schema", str(bench.path / "s.json"), "--keep")
    (row,) = read_rows(bench.output)
    assert row["answer"] == "free text"


def test_json_mode_and_a_list_have_one_column(bench):
    (bench.path / "s.json").write_text('{"type": "array", "items": {"type": "integer"}}')
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("prompt\nhi\n")
    bench.upstream.reply = answer("[1,  2.0]")
    bench.succeed("--schema", str(bench.path / "s.json"))
    assert read_rows(bench.output)[0]["answer"] == "[1,2]"


def test_a_column_of_images_goes_with_a_constant_prompt(bench):
    for at, name in enumerate(("a.png", "b.png")):
        (bench.path / name).write_bytes(picture(at))
    bench.input, bench.output = bench.path / "pictures.csv", bench.path / "captions.csv"
    bench.input.write_text("id,path\n1,a.png\n2,b.png\n3,gone.png\n4,\n")
    bench.upstream.reply = answer("a picture")
    shown = bench.fail("--prompt", "Describe the picture.", "--image-column", "path", code=1)
    rows = read_rows(bench.output)
    assert [row["path"] for row in rows] == ["a.png", "b.png", "gone.png", ""]
    assert [row["answer"] for row in rows] == ["a picture", "a picture", "", ""]
    assert "gone.png" in rows[2]["error"], shown
    assert rows[3]["error"].startswith("empty_prompt")
    contents = [seen.json["messages"][0]["content"] for seen in bench.upstream.seen]
    assert [part["type"] for part in contents[0]] == ["text", "image_url"]
    assert {part["text"] for content in contents for part in content if part["type"] == "text"} == {
        "Describe the picture."
    }
    assert len({part["image_url"]["url"] for content in contents for part in content if "image_url" in part}) == 2


def test_the_advice_for_pictures_that_a_model_cannot_read_is_another_model(bench):
    bench.upstream.reply = choose(lambda seen: status(400, "this model does not support image input"))
    (bench.path / "a.png").write_bytes(picture(0))
    bench.write([{"path": "a.png"}, {"path": "gone.png"}])
    shown = bench.fail("--prompt", "Describe the picture.", "--image-column", "path", code=1)
    assert "-m NAME --keep --again failed sends the failed rows to a model that reads images" in shown
    assert "correct the images" not in shown


@pytest.mark.thorough
def test_the_advice_for_an_image_that_is_missing_sends_its_row_once_it_is_there(bench):
    (bench.path / "a.png").write_bytes(picture(0))
    bench.write([{"path": "a.png"}, {"path": "gone.png"}])
    asked = ("--prompt", "Describe the picture.", "--image-column", "path")
    shown = bench.fail(*asked, code=1)
    assert "correct the images, or their paths in in.jsonl; --again failed then sends the failed rows again" in shown
    assert "run the same command" not in shown
    (bench.path / "gone.png").write_bytes(picture(1))
    assert bench.succeed(*asked, "--again", "failed")["done"] == len(bench.upstream.seen) == 2


def test_a_column_of_images_goes_with_a_column_of_prompts(bench):
    (bench.path / "a.png").write_bytes(picture(0))
    bench.write([{"ask": "What?", "pic": "a.png"}, {"ask": "And?", "pic": ["a.png", "a.png"]}])
    bench.succeed("--prompt-column", "ask", "--image-column", "pic")
    found = sorted(len(seen.json["messages"][0]["content"]) for seen in bench.upstream.seen)
    assert found == [2, 3]


def test_an_unknown_column_of_images_is_refused_with_the_nearest_name(bench):
    bench.input = bench.path / "in.csv"
    bench.input.write_text("id,path\n1,a.png\n")
    assert "--image-column: the input has no column 'pathh'; did you mean path?" in bench.fail(
        "--prompt", "Describe.", "--image-column", "pathh"
    )
    assert not bench.upstream.seen


def test_paths_of_images_that_are_not_sent_are_a_warning(bench):
    (bench.path / "a.png").write_bytes(picture(0))
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("id,path\n1,a.png\n")
    assert "--image-column path" in bench.run("--prompt", "Describe {{path}}.").stderr
    bench.output = bench.path / "other.csv"
    bench.input.write_text("id,path\n1,gone.png\n")
    assert "--image-column" not in bench.run("--prompt", "Describe {{path}}.").stderr
    bench.output = bench.path / "sent.csv"
    bench.input.write_text("id,image\n1,a.png\n")
    assert "--image-column" not in bench.run("--prompt", "Describe {{id}}.").stderr


def test_rows_of_json_become_a_table_with_a_column_for_each_field(bench):
    rows = [
        {"prompt": "a", "n": 1},
        "{broken",
        {"prompt": "b", "tags": ["x", None], "answer": "mine", "half": "\ud800"},
    ]
    bench.write(rows)
    bench.output = bench.path / "out.csv"
    assert bench.run().returncode == 1
    first, broken, last = read_rows(bench.output)
    assert list(first)[:7] == ["prompt", "n", "tags", "answer", "half", "answer_1", "error"]
    assert [first[name] for name in ("prompt", "n", "tags", "answer", "answer_1")] == ["a", "1", "", "", "echo: a"]
    assert [last[name] for name in ("prompt", "tags", "answer", "answer_1")] == ["b", '["x",null]', "mine", "echo: b"]
    assert broken["prompt"] == ""
    assert "not valid JSON" in broken["error"]


@pytest.mark.thorough
def test_the_summary_counts_the_values_of_each_field_of_a_schema(bench):
    bench.input, bench.output = bench.path / "reviews.csv", bench.path / "labels.csv"
    bench.input.write_text("text\n" + "".join(f"{at}\n" for at in range(20)))
    fields = {"sentiment": {"enum": ["positive", "negative"]}, "score": {"type": "integer"}, "why": {"type": "string"}}
    schema = {"type": "object", "properties": fields, "required": [*fields]}
    (bench.path / "s.json").write_text(json.dumps(schema))

    def label(seen: Any) -> Any:
        at = int(seen.prompt)
        mood = "positive" if at < 12 else "negative"
        return answer(json.dumps({"sentiment": mood, "score": 1 + at % 5, "why": f"Because of {at}."}))

    bench.upstream.reply = choose(label)
    said = bench.run("--prompt", "{{text}}", "--schema", str(bench.path / "s.json")).stdout
    line = "  answers   sentiment: positive 12, negative 8; score: 1\N{EN DASH}5, mean 3\n"
    assert line in said
    assert line in bench.jobs(bench.folder.job_id).stdout
    found = bench.status()["results"]["fields"]
    assert found == {
        "sentiment": {"values": {"positive": 12, "negative": 8}},
        "score": {"min": 1, "max": 5, "mean": 3.0},
    }
    assert json.loads(bench.jobs(bench.folder.job_id, "--json").stdout)["results"]["fields"] == found


@pytest.mark.thorough
def test_a_check_names_the_columns_that_the_fields_of_a_schema_get(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("text,mood\na,b\n")
    schema = bench.path / "s.json"
    schema.write_text('{"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}')
    bench.upstream.reply = answer('{"mood": "good"}')
    options = ("--prompt", "{{text}}", "--schema", str(schema))
    (note,) = json.loads(bench.run(*options, "--dry-run", "--json").stdout)["notes"]
    assert note.endswith("those of the job are called `mood_1`.")
    assert note in bench.succeed(*options)["warnings"]


def test_a_stopped_job_with_a_schema_shows_the_fields_of_its_answers_so_far(bench):
    schema = bench.path / "s.json"
    schema.write_text('{"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}')
    bench.prompts(4)
    bench.half_done({0: Completion('{"mood": "good"}'), 1: Completion('{"mood": "good"}')}, "--schema", str(schema))
    assert "  answers   mood: good 2" in bench.jobs(bench.folder.job_id).stdout


def test_images_of_a_parquet_file_are_paths_bytes_or_both(bench):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (bench.path / "a.png").write_bytes(picture(1))
    rows = [{"path": "a.png", "blob": picture(2), "img": {"bytes": picture(3), "path": None}}]
    bench.input, sent = bench.path / "in.parquet", set()
    parquet.write_table(pa.Table.from_pylist(rows), bench.input)
    for column in ("path", "blob", "img"):
        bench.output = bench.path / f"{column}.csv"
        bench.succeed("--prompt", "Describe the picture.", "--image-column", column)
        content = bench.upstream.seen[-1].json["messages"][0]["content"]
        sent.add(content[1]["image_url"]["url"])
    assert len(sent) == 3
    bench.output = bench.path / "none.csv"
    assert "--image-column path" in bench.run("--prompt", "Describe {{path}}.").stderr


LABELS = {0: ["service", "price"], 1: ["price"], 2: []}


@pytest.fixture
def labelled(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("id,text\n0,a\n1,b\n2,c\n")
    bench.upstream.reply = by_prompt(
        {text: answer(json.dumps({"labels": LABELS[at]})) for at, text in enumerate("abc")}
    )
    return bench


@pytest.mark.parametrize("suffix", ["csv", "tsv", "xlsx"])
def test_several_labels_are_a_cell_with_all_of_them(labelled, suffix):
    labelled.output = labelled.path / f"out.{suffix}"
    labelled.succeed("--prompt", "{{text}}", "--choices", "service,price,other", "--choices-many")
    rows = [*objects_in(labelled.output)]
    assert [row["labels"] or "" for row in rows] == ["service; price", "price", ""]


@pytest.mark.thorough
def test_several_labels_stay_a_list_in_json_and_parquet(labelled):
    for suffix in ("jsonl", "parquet"):
        labelled.output = labelled.path / f"out.{suffix}"
        labelled.succeed("--prompt", "{{text}}", "--choices", "service,price,other", "--choices-many")
        rows = [*objects_in(labelled.output)]
        assert [(row.get("answer") or row)["labels"] for row in rows] == [*LABELS.values()]


def test_labels_that_a_semicolon_would_not_tell_apart_stay_json(bench):
    bench.input, bench.output = bench.path / "in.csv", bench.path / "out.csv"
    bench.input.write_text("text\na\n")
    bench.upstream.reply = answer('{"labels": ["a; b", "c"]}')
    bench.succeed("--prompt", "{{text}}", "--schema", str(_many_of(bench, "a; b", "c")))
    assert [row["labels"] for row in objects_in(bench.output)] == ['["a; b","c"]']


def _many_of(bench, *labels):
    path = bench.path / "schema.json"
    path.write_text(json.dumps(schema_of_many(labels)))
    return path


@pytest.mark.thorough
def test_the_summary_counts_labels_and_not_combinations(labelled):
    options = ("--prompt", "{{text}}", "--choices", "service,price,other", "--choices-many")
    assert "answers   labels: price 2, service 1\n" in labelled.run(*options).stdout
    found = labelled.succeed(*options)
    assert found["results"]["fields"] == {"labels": {"values": {"price": 2, "service": 1}, "is_list": True}}
