"""Each argument of the tool `bulk_generate`: what its job is ordered to do, and what is refused."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fastmcp.exceptions import ToolError

from fakes import openai_configuration
from pdf_files import pdf_of_texts
from promptmill.config.configuration import Configuration
from promptmill.jobs.run import detached
from promptmill.jobs.run.job import Job
from promptmill.options import table
from promptmill.service.service import Service

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def folder(bench: Any) -> Path:
    """The folder of a server, with inputs of all kinds."""
    path: Path = bench.path
    (path / "in.csv").write_text("text,picture\none,a.png\n")
    (path / "latin.csv").write_bytes(b"question,caf\xe9\na,b\n")
    pdf_of_texts(path / "a.pdf", ["Invoice 1", "Total 10"])
    with contextlib.closing(sqlite3.connect(path / "mails.db")) as database:
        database.execute("CREATE TABLE inbox (id, body)")
        database.commit()
    bench.prompts(1)
    return path


def flat(order: Any, before: str = "") -> dict[str, Any]:
    """Return the fields of an order, such as `limits.limit`."""
    found: dict[str, Any] = {}
    for name, value in order:
        is_part = name in {"reading", "question", "form", "limits", "earlier"}
        found |= flat(value, f"{name}.") if is_part else {before + name: value}
    return found


def answer_format(schema: Any) -> dict[str, Any]:
    """Return the sampling that asks for an answer with a schema."""
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    }


def object_of(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


_LABELS = {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "maxItems": 2}
_TWO = {"short": "S {{text}}", "long": "L {{text}}"}
_JSON_TEXT = '{"task": "label", "text": "{{text}}"}'
_ORDERED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "B {{text}}"}, {"question.templates": ("B {{text}}",)}),
    ({"prompt": _JSON_TEXT}, {"question.templates": (_JSON_TEXT,)}),
    ({"prompt": '["{{text}}"]'}, {"question.templates": ('["{{text}}"]',)}),
    ({"prompt": "[{{text}}]"}, {"question.templates": ("[{{text}}]",)}),
    ({"prompt": _TWO}, {"question.templates": (*_TWO.values(),), "variants": ["short", "long"]}),
    ({"prompt": None, "prompt_column": "text"}, {"question.templates": (), "question.column": "text"}),
    ({"system_prompt": "Be brief."}, {"system_prompt": "Be brief."}),
    ({"image_column": "picture"}, {"question.image_column": "picture"}),
    ({"row_settings": True}, {"question.row_settings": True}),
    ({"skip_empty": True}, {"question.skip_empty": True}),
    ({"encoding": "cp1252"}, {"reading.encoding": "cp1252"}),
    ({"header_row": 1}, {"reading.header_row": 1}),
    ({"input_file": "mails.db", "prompt": "A {{body}}", "sql": "select body from inbox"},
     {"question.templates": ("A {{body}}",), "reading.sql": "select body from inbox"}),
    ({"input_file": "mails.db#inbox", "prompt": "A {{body}}"}, {"question.templates": ("A {{body}}",)}),
    ({"overwrite": True}, {"earlier.overwrite": True}),
    ({"choices": ["a", "b"]}, {"sampling": {"choices": ["a", "b"]}}),
    ({"choices": {"a": "the first", "b": ""}},
     {"sampling": {"choices": ["a", "b"], "definitions": {"a": "the first", "b": ""}}}),
    ({"choices": ["a", "b"], "choices_many": True}, {"sampling": answer_format(object_of(labels=_LABELS))}),
    ({"schema": _SCHEMA}, {"sampling": answer_format(_SCHEMA)}),
    ({"fields": "customer!,amount:number"},
     {"sampling": answer_format(object_of(customer={"type": "string"}, amount={"type": ["number", "null"]}))}),
    ({"fields": False}, {"form.fields": False}),
    ({"answer_column": "reply"}, {"form.column": "reply"}),
    ({"columns": ["cost", "answer"]}, {"form.columns": ("cost", "answer")}),
    ({"model": "fast"}, {"model": "small"}),
    ({"model": '["good", "fast"]'}, {"model": "large", "variants": ["good", "fast"]}),
    ({"model": ["fast", "good"], "prompt": _TWO},
     {"question.templates": (*_TWO.values(),), "model": "small",
      "variants": ["fast/short", "fast/long", "good/short", "good/long"]}),
    ({"sampling_params": {"temperature": 0, "max_tokens": 5}}, {"sampling": {"temperature": 0, "max_tokens": 5}}),
    ({"limit": 3}, {"limits.limit": 3}),
    ({"sample": 3}, {"question.sample": 3}),
    ({"max_cost": 0.5}, {"limits.max_cost": 0.5}),
    ({"max_failures": "5%"}, {"limits.max_failures": "5%"}),
    ({"dedupe": True}, {"limits.dedupe": True}),
    ({"again": "failed"}, {"earlier.again": "failed"}),
    ({"keep": True}, {"earlier.keep": True}),
    ({"from_job": "0.csv"}, {"earlier.from_jobs": ["job.db"]}),
]  # fmt: skip


async def test_each_argument_is_a_part_of_the_order(bench, tools, folder, monkeypatch):
    jobs: list[Job] = []

    def start(job: Job, ended: Any, **_: Any) -> None:
        jobs.append(job)
        ended()

    monkeypatch.setattr(detached, "start", start)
    raw = openai_configuration(bench.upstream.url)._raw
    block, price = raw["backend_configs"]["openai"], {"price": {"input": 0, "output": 1}}
    named = {"fast": "small", "good": "large"}
    models = {name: {"openai": {**block, "model_name": model}, **price} for name, model in named.items()}
    plain = {"input_file": "in.csv", "prompt": "A {{text}}"}
    orders = []
    async with tools(Service(Configuration({**raw, **price, "models": models}))) as call:
        for number, (given, _) in enumerate([({}, {}), *_ORDERED]):
            await call("bulk_generate", **plain | given, output_file=f"{number}.csv")
            order = flat(jobs[-1].order) | {"model": jobs[-1].config.model}
            order["variants"] = [variant.name for variant in order["variants"]]
            order["earlier.from_jobs"] = [path.name for path in order["earlier.from_jobs"]]
            orders.append({name: value for name, value in order.items() if name not in {"inputs", "output", "shown"}})
    for (given, changed), order in zip(_ORDERED, orders[1:], strict=True):
        assert order == orders[0] | changed, given


def test_the_table_has_every_argument_of_the_core():
    elsewhere = {"audio_column", "each", "pdf", "validate"}
    options = [option for group in table.GROUPS for option in group.options]
    arguments = {option.name_on("argument") for option in options if option.argument and not option.argument.within}
    assert arguments - {name for given, _ in _ORDERED for name in given} == elsewhere


async def test_pdfs_are_read_as_text_or_as_images_of_their_pages(tools, folder):
    async with tools() as call:
        asked = {"files": ["a.pdf"], "prompt": "Extract.", "validate": True}
        checked = await call("bulk_generate", **asked)
        assert checked["pdf"] == "PDFs: 2 pages sent as text; `pdf` (text or images) chooses"
        assert "pdf" not in await call("bulk_generate", **asked, pdf="images")


_MAILS = {"input_file": "mails.db", "output_file": "o.csv", "prompt": "A {{body}}"}
_LATIN = {"input_file": "latin.csv", "output_file": "o.csv", "prompt": "{{question}} {{caf\xe9}}"}
_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "Give one of `input_file`, `prompts` and `files`."),
    ({"input_file": "in.jsonl", "prompts": ["a"]}, "Give one of `input_file`, `prompts` and `files`."),
    ({"input_file": "in.jsonl"}, "`output_file` is missing"),
    ({"files": ["*.md"]}, "The files need a `prompt`"),
    ({"files": ["*.md"], "prompt": "{{content}}"}, "No file to send"),
    ({"prompts": []}, "`prompts` is an empty list"),
    ({"prompts": [7]}, "prompts[0] is a number"),
    ({"prompts": ["a"], "prompt": "Say"}, "`prompt` names no column"),
    ({"prompts": ["a"], "prompt": "{{text}}", "prompt_column": "text"}, "cannot be used with `prompt_column`"),
    ({"prompts": [{"question": "a"}]}, '`prompt_column: "question"`'),
    ({"prompts": ["a"], "max_failures": "few"}, "`max_failures` 'few'"),
    ({"prompts": ["a"], "model": []}, "`model` is an empty list"),
    ({"prompts": ["a"], "model": ["a", 7]}, "model[1]: should be text, not a number."),
    ({"prompts": ["a"], "model": 7}, "model is a number; send a text or a list."),
    ({"prompts": ["a"], "choices": []}, "The choices"),
    ({"prompts": ["a"], "choices": {"a": 5}}, "choices.a: should be text, not a number."),
    ({"prompts": ["a"], "fields": 7}, "fields is a number; send a text or true or false."),
    ({"prompts": ["a"], "fields": ""}, "'' is no field"),
    ({"prompts": ["a"], "prompt": {}}, "`prompt` is an empty object"),
    ({"prompts": ["a"], "prompt": {"x" * 201: "{{text}}"}}, "`prompt`: a name has printable characters"),
    ({"prompts": ["a"], "model": ["a", "b\0"]}, "`model`: a name has printable characters"),
    ({"prompts": ["a"], "prompt": {"x": 7}}, "prompt.x: should be text, not a number."),
    ({"prompts": ["a"], "prompt": {str(at): "{{text}}" for at in range(101)}}, "at most 100 are possible"),
    ({"prompts": ["a"], "sample": 0}, "sample: should be at least 1"),
    ({"prompts": ["a"], "sample": True}, "sample is true or false; send a whole number."),
    ({"prompts": ["a"], "options": {"sample": True}}, "sample is true or false; send a whole number."),
    ({"prompts": ["a"], "sampling_params": {"top_k": True}}, "`sampling_params.top_k` should be a number, not true"),
    ({"prompts": ["a"], "sample": 1, "limit": 1}, "`sample` cannot be used with `limit`"),
    (
        {"prompts": ["a"], "from_job": "gone-0123456789"},
        "There is no job 'gone-0123456789'. bulk_status lists the jobs.",
    ),
    ({"prompts": ["a"], "each": "line"}, "`each` works only for `files`"),
    ({"files": ["*.md"], "each": "row"}, "each: should be 'file' or 'line'"),
    ({"files": ["in.jsonl"], "each": "line"}, "`output_file` is missing"),
    ({"files": ["*.md"], "each": "line", "output_file": "o.csv"}, "No file to send"),
    ({"files": ["*.md"], "each": "line", "pdf": "text"}, '`pdf` cannot be used with `each: "line"`'),
    ({"files": ["a.pdf"], "prompt": "{{content}}", "pdf": "images"}, '`pdf: "images"`, the prompt has no'),
    ({"prompts": ["a"], "encoding": "cp1252"}, "`encoding` works only for `input_file` or `files`"),
    ({"input_file": "in.csv", "output_file": "o.csv", "encoding": "utf-9"}, "`encoding`: 'utf-9' is no encoding"),
    (_LATIN, 'is not UTF-8 text; `encoding: "cp1252"` reads'),
    ({"prompts": ["a"], "sql": "select 1"}, "`sql` works only for `input_file`"),
    ({"input_file": "in.jsonl", "output_file": "o.csv", "sql": "select 1"}, "`sql` needs the name of a database"),
    (_MAILS | {"sql": "select * from nowhere"}, "no such table: nowhere"),
    (_MAILS | {"sql": "selec"}, "syntax error"),
    ({"prompts": ["a"], "choices_many": True}, "`choices_many` needs `choices`"),
    ({"prompts": ["a"], "fields": "amount:money"}, "There is no type 'money'"),
    ({"prompts": ["a"], "fields": "amount", "choices": ["a", "b"]}, "`choices` cannot be used with `fields`"),
    ({"prompts": ["a"], "fields": "amount", "schema": {"type": "object"}}, "`schema` cannot be used with `fields`"),
    ({"prompts": ["a"], "schema": "name,age"}, 'Names of fields go into `fields`: "name,age".'),
    ({"prompts": ["a"], "model": "a,b"}, """`model` 'a,b' is one name; for several: `model: ["a", "b"]`."""),
    ({"prompts": ["a"], "concurrency": 3}, "concurrency is not an argument of this tool: bulk_status sets it"),
    ({"input_file": "https://a.b/x.csv", "output_file": "o.csv"}, "is a URL; name a file on the server's machine."),
    ({"rows": ["a"]}, "rows is not an argument of this tool; did you mean prompts?"),
    ({"prompts": ["a"], "schema": {"type": ["wrong"]}}, "schema is not a usable JSON Schema"),
    ({"prompts": ["a"], "skip_empty": "perhaps"}, "skip_empty: should be true or false"),
    ({"prompts": ["a"], "again": "bogus"}, "again: should be 'failed', 'truncated' or 'all'."),
    ({"prompts": ["a"], "prompt": "{{text}}", "answer_column": "a" * 201}, "`answer_column` has 201 characters"),
    ({"prompts": ["a"], "prompt": "{{text}}", "image_column": "no"}, "`image_column`: the input has no column 'no'"),
    *(
        ({"input_file": source, "output_file": target}, said)
        for source, target, said in [
            ("gone.jsonl", "o.jsonl", "gone.jsonl. Check the path."),
            ("inn.jsonl", "o.jsonl", "Did you mean "),
            ("in.jsonl", ".", "output_file is a folder or a pattern; name a file"),
            ("x" * 300 + ".jsonl", "o.jsonl", "The name xxx"),
            ("in.jsonl", "x" * 300 + ".jsonl", "The name xxx"),
            ("in.jsonl", "x" * 240 + ".jsonl", "is too long; use a shorter one, as the job's own files"),
            ("in.jsonl", "x/" * 3000 + "o.jsonl", "output_file has 6,007 characters; no path is that long"),
            ("x/" * 1_000_000 + "in.jsonl", "o.jsonl", "input_file has 2,000,008 characters; no path is that long"),
        ]
    ),
    ({"files": ["gone.md"], "prompt": "{{content}}"}, "gone.md does not exist"),
    ({"files": ["gone/*.md"], "prompt": "{{content}}"}, "no file matches gone/*.md; check the folder"),
    ({"files": ["/*.md"], "prompt": "{{content}}"}, "or an invalid path; name other files"),
    ({"files": ["*" + "?" * 5000], "prompt": "{{content}}"}, "no path is that long"),
]

_SEEN_IN_ROWS = {
    '`prompt_column: "question"`',
    "`image_column`: the input has no column 'no'",
}
"""Refusals of a job, of which `validate` says what is wrong with a row."""


@pytest.mark.thorough
async def test_a_call_that_cannot_be_is_refused_with_the_names_of_its_arguments(bench, tools, folder):
    async with tools() as call:
        for row, said in _REFUSED:
            calls: list[dict[str, Any]] = [row, {"again": "all"} | row, {"validate": True} | row]
            for asked in calls[:2] if said in _SEEN_IN_ROWS else calls:
                with pytest.raises(ToolError) as refused:
                    await call("bulk_generate", **asked)
                assert said in str(refused.value), asked
                assert "--" not in str(refused.value)
                assert "`promptmill " not in str(refused.value)
        assert (await call("bulk_status"))["jobs"] == []
    assert not bench.upstream.seen


@pytest.mark.thorough
async def test_a_status_that_cannot_be_is_refused_in_words(tools):
    refused: list[tuple[dict[str, Any], str]] = [
        ({"offset": -1}, "offset: should be at least 0."),
        ({"limit": 0}, "limit: should be at least 1."),
        ({"limit": 1001}, "limit: should be at most 1000."),
        ({"limit": "many"}, "limit: should be a whole number, not a text."),
        ({"limit": 2.5}, "limit: should be a whole number."),
        ({"job_id": "in.jsonl"}, "There is no job 'in.jsonl'."),
        ({"job_id": "../../../etc"}, "There is no job '../../../etc'."),
        ({"job_id": "~nobody"}, "There is no job '~nobody'."),  # looked up, it would say which accounts exist
    ]
    async with tools() as call:
        for given, said in refused:
            with pytest.raises(ToolError) as error:
                await call("bulk_status", **{"read": "all", "job_id": "x"} | given)
            assert str(error.value).startswith(said)
