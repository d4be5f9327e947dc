from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest

from promptmill.config.backends import OTHER_PATHS
from promptmill.core.errors import PromptmillError
from promptmill.core.request import ImagePart, Request, Sampling, TextPart
from promptmill.jobs.rows.row_lines import RowImages, RowLimits, RowReader


def read(kind: str, row: Any, **options: Any) -> Any:
    """Return conversation, sampling and extra parameters of a row, given as JSON or text."""
    return parts_of(RowReader(kind, **options).request(6, row if isinstance(row, bytes) else json.dumps(row).encode()))


def parts_of(request: Request) -> tuple[Any, Any, Any]:
    return request.conversation, request.sampling, request.extra


def test_images_replace_the_tag():
    conversation, *_ = read("jsonl", {"prompt": "<i> and", "images": ["a.png"]}, images=RowImages("<i>"))
    assert conversation.messages[0].content == (ImagePart("a.png"), TextPart(" and"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"{not json", "line 7 is not valid JSON"),
        (b'{"prompt": "\xff"}', "line 7 is not UTF-8 text"),
        ('{"prompt": "a"}'.encode("utf-16"), "line 7 is not UTF-8 text"),
        (b'"text"', "line 7 is a text"),
        (b"[1]", "line 7 is a list of 1"),
        ({}, "line 7 has neither `prompt` nor `messages`"),
        ({"prompt": "a", "messages": []}, "line 7 has both"),
        ({"prompt": True}, "line 7: prompt is"),
        ({"messages": "hello"}, "line 7: messages is a text"),
        ({"messages": []}, "line 7: messages is empty"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "line 7: messages[0] has the role 'robot'"),
        ({"prompt": "a", "images": [5]}, "line 7: images[0] is a number"),
        (b"[" * 100_000, "line 7 is not valid JSON"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(row, said):
    with pytest.raises(PromptmillError, match="line 7") as caught:
        read("jsonl", row)
    assert caught.value.code == "invalid_input"
    assert said in str(caught.value)


def test_more_tags_than_images_name_the_line():
    with pytest.raises(PromptmillError, match="line 7: The prompt contains the image tag 2"):
        read("jsonl", {"prompt": "<i><i>", "images": ["a.png"]}, images=RowImages("<i>"))


def test_numbers_that_only_pythons_parser_reads_are_accepted():
    conversation, *_ = read("jsonl", b'{"prompt": "a", "id": 123456789012345678901234567890, "score": NaN}')
    assert conversation.as_messages() == [{"role": "user", "content": "a"}]


def test_a_byte_order_mark_is_not_part_of_the_first_line():
    assert read("jsonl", b'\xef\xbb\xbf{"prompt": "a"}')[0].messages[0].content == "a"


BATCH = {
    "custom_id": "x",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "stop": "END",
        "stream": True,
        "logit_bias": {"5": 1},
    },
}


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"url": "/v1/files"}, "unsupported", "only POST to /v1/chat/completions"),
        ({"method": "GET"}, "unsupported", "only POST"),
        ({"custom_id": None}, "invalid_input", "custom_id is null"),
        ({"body": "x"}, "invalid_input", "body is a text"),
        ({"body": {"model": "m"}}, "invalid_input", "body.messages is null"),
        ({"body": {**BATCH["body"], "n": 0}}, "invalid_input", "body.n"),  # type: ignore[dict-item]
        ({"body": {**BATCH["body"], "temperature": "hot"}}, "invalid_input", "body.temperature"),  # type: ignore[dict-item]
    ],
)
def test_an_unsupported_batch_line_is_an_error(change, code, said):
    with pytest.raises(PromptmillError) as caught:
        read("batch", {**BATCH, **change})
    assert caught.value.code == code
    assert said in str(caught.value)
    assert str(caught.value).startswith("line 7")


def test_a_reader_adds_the_settings_that_a_line_lacks_and_can_be_sent_to_another_process():
    reading = pickle.loads(pickle.dumps(RowReader("jsonl", Sampling(temperature=0), {"x": 1}, "Be brief.")))
    conversation, sampling, extra = parts_of(reading.request(0, b'{"prompt": "a"}'))
    assert [message.role for message in conversation.messages] == ["system", "user"]
    assert (sampling.temperature, extra) == (0, {"x": 1})
    batch = RowReader("batch", Sampling(temperature=0), {"x": 1})
    _, sampling, extra = parts_of(batch.request(0, json.dumps(BATCH).encode()))
    assert sampling.temperature == 0.5
    assert "x" not in extra


PNG = "iVBORw0KGgo" + "A" * 60


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        ({"image": "a.png"}, ["a.png"]),
        ({"image": {"bytes": None, "path": "a.png"}}, ["a.png"]),
        ({"image": {"bytes": PNG, "path": "a.png"}}, [f"data:;base64,{PNG}"]),
        ({"image": PNG}, [f"data:;base64,{PNG}"]),
        ({"images": [{"bytes": PNG, "path": None}, "b.png"]}, [f"data:;base64,{PNG}", "b.png"]),
        ({"images": [{"url": "https://images.example/a.png"}]}, ["https://images.example/a.png"]),
        ({"image": "a.png", "images": ["b.png"]}, ["a.png", "b.png"]),
        ({"image": None, "images": []}, []),
    ],
)
def test_images_come_in_the_shapes_that_data_sets_have(given, sources):
    conversation, *_ = read("jsonl", {"prompt": "look", **given})
    assert [image.source for image in conversation.images] == sources


@pytest.mark.parametrize("image", [{"bytes": None, "path": None}, 5, [["a.png"]], {"x": 1}])
def test_an_image_of_another_shape_is_that_rows_error(image):
    with pytest.raises(PromptmillError, match="line 7: image"):
        read("jsonl", {"prompt": "look", "image": image})


def test_a_rows_own_parameters_override_the_jobs():
    reader = RowReader("jsonl", Sampling(temperature=0.5, top_p=0.9), {"logit_bias": {}}, "Be brief.")
    row = {"prompt": "a", "temperature": 0, "stop": "x", "model": "b", "tools": [{}], "system": "Be long.", "id": 3}
    conversation, sampling, extra = parts_of(reader.request(0, json.dumps(row).encode()))
    assert sampling.given() == {"temperature": 0, "top_p": 0.9, "stop": ["x"]}
    assert dict(extra) == {"logit_bias": {}, "model": "b", "tools": [{}]}
    assert conversation.as_messages()[0] == {"role": "system", "content": "Be long."}
    same = parts_of(
        reader.request(1, b'{"prompt": "a", "temperature": null, "seed": NaN, "stop": "", "n": 1, "reasoning": "hm"}')
    )
    assert same[1] is reader.sampling
    assert same[2] is reader.extra


@pytest.mark.parametrize("kind", ["jsonl", "batch"])
def test_a_backend_may_not_leave_out_what_a_row_sets_itself(kind):
    own: dict[str, Any] = {"seed": 1, "temperature": 0.5, "top_p": 1, "tools": [{}]}
    row = {"prompt": "a", **own} if kind == "jsonl" else _batch_line(**own, user="me")
    reader = RowReader(kind, Sampling(temperature=0.5, min_p=0.1), {"logprobs": True})
    assert reader.request(0, json.dumps(row).encode()).required == {"seed", "tools"}
    plain = RowReader("jsonl", Sampling(seed=1)).request(0, b'{"prompt": "a"}')
    assert not plain.required


@pytest.mark.parametrize("kind", ["jsonl", "batch"])
def test_a_backend_may_leave_out_what_the_configuration_of_a_rows_model_sets(kind):
    own: dict[str, Any] = {"model": "fast", "seed": 1, "stop": ["x"]}
    row = {"prompt": "a", **own} if kind == "jsonl" else _batch_line(**own)
    reader = RowReader(kind, Sampling(stop=["x"]), models={"fast": RowReader(kind, Sampling(seed=1))})
    assert reader.request(0, json.dumps(row).encode()).required == {"stop"}


def test_cells_of_a_table_hold_numbers_and_json_as_text():
    row = {"prompt": "a", "temperature": "0.7", "max_tokens": "10", "seed": 3.0, "stop": '["x", "y"]', "tools": "[{}]"}
    _, sampling, body = read("table", row)
    assert sampling.given() == {"temperature": 0.7, "max_tokens": 10, "seed": 3, "stop": ["x", "y"]}
    assert body == {"tools": [{}]}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": "hot"}, "line 7: temperature: "),
        ({"top_p": 7}, "line 7: top_p: "),
        ({"temperature": True}, "line 7: temperature: should be a number, not true or false"),
        ({"n": 2}, "line 7: `n` is above 1"),
        ({"tools": "[{"}, "line 7: tools is not valid JSON"),
        ({"system": 5}, "line 7: system is a number"),
        ({"model": "other"}, "line 7 names a model other than the loaded one"),
    ],
)
def test_an_unsupported_field_is_an_error_of_its_row(given, said):
    with pytest.raises(PromptmillError, match=re.escape(said)):
        read("jsonl", {"prompt": "a", **given}, limits=RowLimits(only_model="loaded"))


def _batch_line(path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "a"}]} if path.endswith("chat/completions") else {"prompt": "a"}
    return {"custom_id": "1", "method": "POST", "url": path, "body": {**asked, **body}}


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("jsonl", {"prompt": "a", "max_tokens": 101}),
        ("jsonl", {"prompt": "a", "max_completion_tokens": 4000}),
        ("jsonl", {"prompt": "a", "max_tokens": 1, "max_completion_tokens": 4000}),
        ("jsonl", {"prompt": "a", "max_completion_tokens": -1_000_000}),
        ("table", {"prompt": "a", "max_tokens": "101"}),
        ("batch", _batch_line(max_tokens=101)),
        ("batch", _batch_line(max_completion_tokens=101)),
        ("batch", _batch_line(max_new_tokens="101")),
        ("batch", _batch_line(max_tokens=1, max_tokens_to_sample=101)),
        ("batch", _batch_line(max_tokens=1, options={"max_answer_tokens": "101"})),
        ("batch", _batch_line("/v1/completions", max_tokens=101)),
        ("batch", _batch_line("/v1/responses", max_output_tokens=101)),
    ],
)
def test_a_row_above_the_limit_of_tokens_fails(kind, row):
    reader = RowReader(kind, limits=RowLimits(tokens=100, paths=OTHER_PATHS))
    with pytest.raises(PromptmillError, match=r"(line|row) 7: max_\w*tokens\w* must be 1 to 100 tokens on this server"):
        reader.request(6, json.dumps(row).encode())


def test_the_limit_of_tokens_applies_to_rows_without_one():
    def body(row: Any, kind: str = "batch", **more: Any) -> dict[str, Any]:
        asked = RowReader(kind, limits=RowLimits(tokens=100, paths=OTHER_PATHS), **more).request(
            6, json.dumps(row).encode()
        )
        return {name: value for name, value in {**asked.sampling.given(), **asked.extra}.items() if "tokens" in name}

    assert body(_batch_line()) == {"max_tokens": 100}
    assert body(_batch_line(max_tokens=None)) == {"max_tokens": 100}
    assert body(_batch_line(max_completion_tokens=7)) == {"max_completion_tokens": 7}
    assert body(_batch_line(max_tokens=7, skip_special_tokens=True, truncate_prompt_tokens=4000))["max_tokens"] == 7
    assert body(_batch_line(max_tokens=7, metadata={"source_tokens": "5000"}))["max_tokens"] == 7
    assert body(_batch_line(num_tokens=500), extra={"num_tokens": 500})["num_tokens"] == 500, "the operator's own"
    assert body(_batch_line("/v1/completions")) == {"max_tokens": 100}
    assert body(_batch_line("/v1/responses")) == {"max_output_tokens": 100}
    assert body(_batch_line("/v1/embeddings", input="a")) == {}
    assert body({"prompt": "a"}, "jsonl") == {"max_tokens": 100}
    assert body({"prompt": "a"}, "jsonl", sampling=Sampling(max_tokens=500)) == {"max_tokens": 500}, "the job's own"


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("jsonl", {"prompt": "a", "model": "dear"}),
        ("batch", _batch_line(model="dear")),
        ("batch", json.dumps(_batch_line(model="dear")).replace("model", "mode\\u006c").encode()),
        ("batch", _batch_line(models=["fast", "dear"])),
        ("batch", _batch_line(model="fast", fallbacks=[{"model": "dear"}])),
        ("batch", _batch_line("/v1/embeddings", model="dear", input="a")),
    ],
)
def test_a_row_names_only_models_that_a_call_may_choose(kind, row):
    reader = RowReader(kind, limits=RowLimits(models=frozenset({"fast"}), paths=OTHER_PATHS))
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    with pytest.raises(PromptmillError, match="line 7: there is no model 'dear'; models here: fast"):
        reader.request(6, line)
    reader.request(6, line.replace(b"dear", b"fast"))


def test_models_that_the_configuration_names_itself_are_no_choice_of_a_row():
    reader = RowReader("jsonl", extra={"models": ["dear", "dearer"]}, limits=RowLimits(models=frozenset({"fast"})))
    assert reader.request(0, b'{"prompt": "a"}').extra["models"] == ["dear", "dearer"]
    with pytest.raises(PromptmillError, match="there is no model 'other'"):
        reader.request(0, b'{"prompt": "a", "model": "other"}')
