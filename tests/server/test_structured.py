"""`schema` of the tools, as a client sees it."""

import asyncio
import csv
import json
import threading
import time

import orjson
import pytest

from promptmill.answers.response_format import with_schema
from promptmill.cli.main import main
from promptmill.core.request import conversation_from_prompt
from replies import answer, by_prompt
from talk import codes, sent, text

NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


async def test_every_answering_tool_takes_a_schema_as_an_object_or_as_text(talk, upstream):
    upstream.reply = answer('Here: {"name": "Ada",}')
    for result in [
        await talk("generate", prompt_ls=["Who?"], schema=NAME),
        await talk("multimodal_generate", multimodal_path=[[]], prompt_ls=["Who?"], schema=NAME),
        await talk("multiturn_generate", messages=[{"role": "user", "content": "Who?"}], schema=json.dumps(NAME)),
    ]:
        assert result.structured_content == {"ans_ls": ['{"name": "Ada"}']}
        assert result.meta["repaired"] == 1
    assert {seen.json["response_format"]["type"] for seen in upstream.seen} == {"json_schema"}


async def test_long_schemas_are_read_in_a_thread_one_call_at_a_time(talk, monkeypatch):
    threads, running, most = set(), [], []

    def noted(*given):
        running.append(None)
        most.append(len(running))
        threads.add(threading.get_ident())
        time.sleep(0)
        found = with_schema(*given)
        running.pop()
        return found

    monkeypatch.setattr("promptmill.server.tools.with_schema", noted)
    long = {"type": "object", "properties": {f"name{number}": {"type": "string"} for number in range(500)}}
    await asyncio.gather(*(talk("generate", prompt_ls=["Who?"], schema=long) for _ in range(10)))
    assert len(most) == 10
    assert max(most) == 1
    assert threading.get_ident() not in threads
    await talk("generate", prompt_ls=["Who?"], schema=NAME)
    assert threading.get_ident() in threads, "a short one is not worth a thread"


@pytest.mark.thorough
async def test_prompts_of_megabytes_are_read_in_a_thread(talk, monkeypatch):
    threads = set()

    def noted(*given):
        threads.add(threading.get_ident())
        return conversation_from_prompt(*given)

    monkeypatch.setattr("promptmill.server.arguments.conversation_from_prompt", noted)
    await talk("generate", prompt_ls=["x" * 1_000_000])
    await talk("multimodal_generate", prompt_ls=["x"], multimodal_path=[["a.png"] * 50_000])
    assert threading.get_ident() not in threads
    await talk("generate", prompt_ls=["x"] * 100)
    assert threading.get_ident() in threads


async def test_without_a_schema_nothing_is_asked_for(talk, upstream):
    await talk.answers("Who?")
    assert "response_format" not in sent(upstream)


async def test_an_answer_that_never_satisfies_the_schema_is_an_error_with_its_text(talk, upstream):
    upstream.reply = by_prompt({"Good?": answer('{"name": "Ada"}')}, otherwise=answer("No idea."))
    result = await talk("generate", prompt_ls=["Good?", "Bad?"], schema=NAME)
    assert codes(result) == {1: "invalid_answer"}
    assert result.structured_content["errors"][0]["text"] == "No idea."
    assert result.meta["asked_again"] == 1


async def test_a_schema_that_cannot_be_used_is_refused_before_anything_is_sent(talk, upstream):
    first, second = [await talk.error("generate", prompt_ls=["Who?"], schema=bad) for bad in ({"type": ["x"]}, [5])]
    assert "schema is not a usable JSON Schema" in first
    assert "schema" in second
    assert not upstream.seen


@pytest.mark.parametrize(
    "form",
    [
        {"schema": "name,age:integer"},
        {"schema": ["name", "age:integer"]},
        {"schema": {"name": "text", "age": "integer"}},
        {"fields": "name,age:integer"},
        {"fields": ["name", "age:integer"]},
        {"fields": {"name": "string", "age": "int"}},
        {"fields": '["name", "age:integer"]'},
    ],
)
async def test_names_of_fields_are_a_schema_in_any_way_of_writing(talk, upstream, form):
    upstream.reply = answer('{"name": "Ada", "age": 36}')
    result = await talk("generate", prompt_ls=["Who?"], **form)
    assert not result.is_error, text(result)
    properties = sent(upstream)["response_format"]["json_schema"]["schema"]["properties"]
    assert {name: kind["type"] for name, kind in properties.items()} == {
        "name": ["string", "null"],
        "age": ["integer", "null"],
    }


async def test_fields_do_not_replace_a_schema_that_is_sent_too(talk, upstream):
    assert "fields is not an argument" in await talk.error("generate", prompt_ls=["Who?"], schema=NAME, fields="age")
    assert not upstream.seen


async def test_a_choice_may_lack_its_definition(talk, upstream):
    upstream.reply = answer("ham")
    result = await talk("generate", prompt_ls=["Buy!"], choices={"spam": "advertising", "ham": None})
    assert not result.is_error, text(result)


async def test_a_json_schema_of_texts_is_no_list_of_fields(talk, upstream):
    upstream.reply = answer('"2026-12-01"')
    await talk("generate", prompt_ls=["When?"], schema={"type": "string", "format": "date"})
    assert sent(upstream)["response_format"]["json_schema"]["schema"]["format"] == "date"


async def test_choices_may_have_definitions(talk, upstream):
    upstream.reply = answer("spam")
    choices = {"spam": "advertising", "ham": "a wanted mail"}
    result = await talk("generate", prompt_ls=["Buy!"], choices=choices, system_prompt="Be strict.")
    assert not result.is_error, text(result)
    system, _ = sent(upstream)["messages"]
    assert system["content"].startswith("Be strict.")
    assert "spam: advertising" in system["content"]


async def test_a_call_that_goes_on_as_a_job_keeps_its_schema(serve, upstream):
    upstream.reply = answer('{"name": "Ada"}')
    async with serve(top={"max_call_s": 30}) as talk:
        result = await talk("generate", prompt_ls=["Who?"], schema=NAME)
    assert text(result) == orjson.dumps({"ans_ls": ['{"name": "Ada"}']}).decode()
    assert sent(upstream)["response_format"]["json_schema"]["schema"] == NAME


@pytest.fixture
def arguments(upstream, tmp_path):
    """The arguments that name a configuration and a schema."""
    config, schema = tmp_path / "p.yaml", tmp_path / "schema.json"
    block = {"model_name": "m", "base_url": upstream.url, "base_delay": 0.01}
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    schema.write_text(json.dumps(NAME))
    return ["--config", str(config), "--schema", str(schema)]


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_of_a_table_may_bring_a_schema_of_its_own(upstream, tmp_path, capsys, workers):
    upstream.reply = answer('```{"name": "Ada"}```')
    config = tmp_path / "p.yaml"
    block = {"model_name": "m", "base_url": upstream.url, "num_workers": workers}
    config.write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
    rows = [["prompt", "answer_schema"], ["with", json.dumps(NAME)], ["without", ""]]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert (
        main(["bulk", str(tmp_path / "in.csv"), str(tmp_path / "out.jsonl"), "--config", str(config), "--quiet"]) == 0
    )
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["answer"], second["answer"]) == ('{"name": "Ada"}', '```{"name": "Ada"}```')
    capsys.readouterr()


def test_a_schema_file_that_cannot_be_used_is_named(upstream, arguments, tmp_path, capsys):
    (tmp_path / "schema.json").write_text("[1]")
    assert main(["generate", "Who?", *arguments]) == 2
    assert "schema.json" in capsys.readouterr().err
    assert not upstream.seen


@pytest.mark.thorough
async def test_every_answering_tool_takes_choices_and_answers_with_one_of_them(talk, upstream):
    upstream.reply = answer('{"answer": "no"}')
    for result in [
        await talk("generate", prompt_ls=["Well?"], choices=["yes", "no"]),
        await talk("multimodal_generate", multimodal_path=[[]], prompt_ls=["Well?"], choices='["yes", "no"]'),
        await talk("multiturn_generate", messages=[{"role": "user", "content": "Well?"}], choices=["yes", "no"]),
        await talk("generate", prompt_ls=["Well?"], sampling_params={"choices": ["yes", "no"]}),
    ]:
        assert result.structured_content == {"ans_ls": ["no"]}
        assert "repaired" not in result.meta


async def test_choices_go_without_a_schema(talk, upstream):
    assert "exclude each other" in await talk.error("generate", prompt_ls=["Well?"], choices=["yes", "no"], schema=NAME)
    assert "at least two" in await talk.error("generate", prompt_ls=["Well?"], choices=["yes"])
    assert not upstream.seen
    await talk.answers("Well?", choices=[])
    assert "response_format" not in sent(upstream)
