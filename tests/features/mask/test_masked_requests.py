"""Nothing personal is in any request of a job, and all of it is in the answers."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from batch_server import BatchServer, prompt_of
from decision_replies import decides
from dialect_replies import speaks
from embedding import embeddings
from fakes import openai_configuration
from personal_data import KINDS, NAMES, leaked, planted_rows, wide
from promptmill.backends.protocol import Call, Completion, Facts, Failure, Growing
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import (
    NOTHING_SHARED,
    Conversation,
    Request,
    Sampling,
    Shared,
    conversation_from_messages,
)
from promptmill.core.values import text_of
from promptmill.features.batches import batch_round
from promptmill.features.mask.masking import MaskedRequests
from promptmill.jobs.inputs.any_format import objects_in
from replies import answer, choose
from tables import write_rows
from waiting import PATIENCE_S

KILLED = Path(__file__).parents[2] / "support" / "killed.py"
MASK = re.compile(r"\[[A-Z]+_[0-9A-Z]{8}\]")
PROMPT = "Mark it: {{mail}} / {{note}}"
MAIL = {"mail": "Write to jane@example.com", "note": "Jane Doe"}


def text_in(body: dict[str, Any]) -> str:
    """Return the text of the first user turn of a request."""
    content = next(one["content"] for one in body["messages"] if one["role"] == "user")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.fixture
def job(bench, upstream, request):
    """A job on planted rows: a function that runs it, checks its requests, and returns the rows of the output."""
    rows, values = planted_rows(getattr(request, "param", 40))

    def run(reply: Any, *arguments: str, prompt: str = PROMPT, speaking: Any = None) -> list[Any]:
        upstream.reply = speaking or choose(lambda seen: answer(reply(seen.json)))
        (bench.path / "names.csv").write_text("\n".join(["name", *NAMES]) + "\n")
        bench.write(rows)
        asked = ("--prompt", prompt) if prompt else ()
        bench.succeed(*asked, "--mask", f"{KINDS},{bench.path / 'names.csv'}", *arguments)
        assert leaked([seen.json for seen in upstream.seen], values) == []
        assert "mask" not in upstream.seen[0].json
        return [*objects_in(bench.output)]

    run.texts = [f"Mark it: {row['mail']} / {row['note']}" for row in rows]  # type: ignore[attr-defined]
    return run


def test_no_value_is_sent_and_all_are_put_back(job):
    assert [row["answer"] for row in job(text_in)] == job.texts


@pytest.mark.thorough
@pytest.mark.parametrize("job", [5_000], indirect=True)
def test_twenty_thousand_values_stay_here(job):
    assert [row["answer"] for row in job(text_in)] == job.texts


@pytest.mark.thorough
@pytest.mark.parametrize("job", [2_000], indirect=True)
@pytest.mark.parametrize("dialect", ["anthropic", "gemini", "responses"])
def test_no_value_is_sent_in_another_dialect(job, dialect):
    answered = job(None, "--set", f"backend_configs.openai.dialect={dialect}", speaking=speaks())
    assert [row["answer"] for row in answered] == [f"echo: {text}" for text in job.texts]


@pytest.mark.thorough
@pytest.mark.parametrize("job", [2_000], indirect=True)
@pytest.mark.parametrize("dialect", ["decisions", "systemone", "gemini-decisions"])
def test_no_value_is_sent_to_a_model_that_decides(job, dialect):
    asked = ("--choices", "yes,no", "--set", f"backend_configs.openai.dialect={dialect}")
    assert {row["answer"] for row in job(None, *asked, speaking=decides())} == {"yes", "no"}


def test_an_answer_that_is_requested_again_has_masks_in_each_request(job):
    def reply(body: dict[str, Any]) -> str:
        is_first = body["messages"][-1]["content"].startswith("Mark it")
        return f"no JSON: {text_in(body)}" if is_first else json.dumps({"said": text_in(body)})

    assert [row["answer"]["said"] for row in job(reply, "--fields", "said")] == job.texts


@pytest.mark.features("together")
def test_rows_that_share_a_request_have_masks(job):
    def reply(body: dict[str, Any]) -> str:
        records = [json.loads(line) for line in text_in(body).splitlines() if line.startswith('{"id"')]
        answers = [{"id": one["id"], "answer": f"Mark it: {one['mail']} / {one['note']}"} for one in records]
        return json.dumps({"answers": answers}) if records else text_in(body)

    assert [row["answer"] for row in job(reply, "--together", "8")] == job.texts


@pytest.mark.features("sources")
def test_quotes_are_of_the_values(job):
    def reply(body: dict[str, Any]) -> str:
        (first, *_) = MASK.findall(text_in(body))
        return json.dumps({"value": {"quote": first, "value": first}})

    for row in job(reply, "--fields", "value", "--quote"):
        source = row["sources"]["value"]
        assert row[source["column"]][source["start"] : source["end"]] == row["answer"]["value"]


@pytest.mark.features("sources")
@pytest.mark.parametrize("job", [300], indirect=True)
def test_each_exact_quote_is_found(job, bench):
    def reply(body: dict[str, Any]) -> str:
        mail, _, note = text_in(body).partition("\n\n")[0].removeprefix("Mark it: ").partition(" / ")
        chance = random.Random(len(mail))
        words, masks = mail.split(" "), MASK.findall(mail + note)
        first = chance.randrange(len(words))
        quotes = [mail, note, " ".join(words[first : chance.randint(first + 1, len(words))]), *masks]
        return json.dumps({"values": [{"quote": quote, "value": "x"} for quote in quotes if quote.strip()]})

    job(reply, "--fields", "values:list", "--quote")
    found = bench.status()["quotes"]
    assert found["quotes"] > 1_900
    assert found["missing"] == 0


@pytest.mark.features("embeddings")
def test_texts_of_vectors_have_masks(job, bench, upstream):
    upstream.other_posts = embeddings()
    job(text_in, "--embed", "{{mail}} {{note}}", prompt="")


@pytest.mark.features("documents")
def test_pieces_of_a_long_text_have_masks(job):
    job(text_in, "--split", "60")


def test_several_answers_to_a_row_have_values(job):
    rows = job(text_in, "--set", "sampling_params.n=2")
    assert [row["answers"] for row in rows] == [[text, text] for text in job.texts]


def halves(seen: list[Any]) -> list[list[str]]:
    """Return the prompts of two equal runs, each sorted."""
    half = len(seen) // 2
    return [sorted(text_in(one.json) for one in part) for part in (seen[:half], seen[half:])]


def test_a_value_has_the_same_mask_in_all_runs_of_a_job(job, upstream):
    job(text_in)
    job(text_in, "--again", "all")
    first, second = halves(upstream.seen)
    assert first == second


def test_another_job_has_other_masks(job, bench, upstream):
    job(text_in)
    bench.output = bench.path / "other.jsonl"
    job(text_in)
    one, other = ({*MASK.findall("".join(prompts))} for prompts in halves(upstream.seen))
    assert one
    assert not one & other


@pytest.mark.features("batches")
@pytest.mark.parametrize(
    "point", [*(pytest.param(each, marks=pytest.mark.thorough) for each in ("never", "after-batch:3")), "after-replies"]
)
def test_rows_by_batch_have_their_values_also_after_a_kill(tmp_path, point, monkeypatch):
    monkeypatch.setattr(batch_round, "LIST_LAG_S", 0.3)  # as in the killed process
    rows, values = planted_rows(12)
    for n, row in enumerate(rows):
        row |= {"note": f"{row['note']} by Kim Q{n}", "who": f"Kim Q{n}"}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "names.csv").write_text("\n".join(["name", *NAMES]) + "\n")
    sent: list[Any] = []
    with BatchServer("openai") as server:
        server.answers = lambda body: sent.append(body) or prompt_of(body)
        block = {"base_url": server.base_url, "model_name": "m", "api_key": "k"}
        (tmp_path / "p.yaml").write_text(json.dumps({"backend": "openai", "backend_configs": {"openai": block}}))
        words = [sys.executable, str(KILLED), point, "bulk", "in.jsonl", "out.jsonl", "--config", "p.yaml", "--quiet"]
        words += ["--prompt", PROMPT, "--mask", f"{KINDS},names.csv,column:who", "--batch", "--poll", "0.1s"]
        for at in dict.fromkeys((point, "never")):
            words[2] = at
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            assert done.returncode in {0, -9}, done.stderr[-2000:] + done.stdout[-2000:]
    assert leaked(sent, values) == []
    assert "Kim Q" not in str(sent)
    answers = [row["answer"] for row in objects_in(tmp_path / "out.jsonl")]
    assert answers == [f"Mark it: {row['mail']} / {row['note']}" for row in rows]


def test_masks_that_a_model_changes_are_put_back_and_invented_ones_are_a_note(bench, upstream):
    upstream.reply = choose(lambda seen: answer(change(MASK.findall(seen.prompt)[0])))
    change = str.lower
    bench.write([MAIL, MAIL | {"note": "[EMAIL_7] is mine"}])
    arguments = ("--prompt", PROMPT, "--mask", "email")
    status = bench.succeed(*arguments)
    assert [row["answer"] for row in objects_in(bench.output)] == ["jane@example.com"] * 2
    assert status["masks"] == {"rows": 0, "values": {"email": 2}, "like_phones": 0}
    change = "{0} and [EMAIL_7]".format
    again = bench.succeed(*arguments, "--again", "all")["masks"]
    assert again["rows"] == 1, "the second row has it itself"
    said = bench.here(bench.command(*arguments, "--again", "all"))
    assert "1 answer with a mask that the model changed or made up" in said.stdout + said.stderr


def test_only_rows_with_a_mask_that_they_do_not_have_themselves_are_counted(bench, upstream):
    said = ["[EMAIL_7]", "[EMAIL_7]", "{0}", wide("EMAIL_K7Q2M4XX"), "[Figure 12]", "EMAIL_K7Q2M4XX", "name_lastname"]
    notes = ["", "[EMAIL_7] is mine", "", "", "", "\uff25MAIL_K7Q2M4XX", ""]
    upstream.reply = choose(lambda seen: answer(said[int(seen.prompt[-2])].format(*MASK.findall(seen.prompt))))
    bench.write([{"mail": "a@b.de", "note": f"{note} ({at})"} for at, note in enumerate(notes)])
    assert bench.succeed("--prompt", "{{mail}} {{note}}", "--mask", "email")["masks"]["rows"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mask", "emial"), "'emial', which is none of email, phone"),
        (("--mask", "email", "--choices", "jane@example.com,none"), "an allowed value of the schema"),
        (("--mask", "email", "--choices", "jane@example.com,none"), "It is in `choices`."),
        (("--mask", "none.csv"), "none.csv, the names to mask, cannot be read"),
        (("--mask", "no_masks:people"), "no_masks:people cannot be imported"),
        (("--mask", "id:XX"), "no id of XX is known"),
        (("--mask", "email", "--image-column", "mail"), "personal data in an image cannot be masked"),
    ],
)
def test_what_cannot_be_masked_is_said_before_a_request(bench, upstream, arguments, said):
    bench.write([MAIL])
    assert said in bench.fail("--prompt", PROMPT, *arguments)
    assert not upstream.seen


def test_the_value_of_a_column_is_masked_in_all_cells_of_its_row(bench, upstream):
    upstream.reply = answer()
    bench.write([{"mail": "Dear ann lee, Bob is here", "note": "Ann Lee"}, {"mail": "Ann Lee is here", "note": "Bob"}])
    bench.succeed("--prompt", PROMPT, "--mask", "column:note")
    first, second = sorted((seen.prompt for seen in upstream.seen), key=len)
    assert "Bob is here" in second
    assert "Ann Lee is here" in first
    assert [len(MASK.findall(text)) for text in (first, second)] == [1, 2]


CUSTOMERS: list[dict[str, Any]] = [
    {"text": "Dear 王小明, see Müller & Söhne. 王小明!", "who": "王小明", "firm": "Müller & Söhne"},
    {"text": json.dumps({"said": 'José "Pepe" Núñez of ISTANBUL'}), "who": 'José "Pepe" Núñez', "firm": "İstanbul"},
    {
        "text": "Jane Doe of Doe, order 4711 or \u0664\u0665\u0666",
        "who": ["Jane Doe", 4711],
        "firm": {"name": "Doe", "no": 456},
    },
    {"text": "Nobody is here", "who": None, "firm": ""},
]
PERSONAL = "王小明", "Söhne", "Pepe", "ISTANBUL", "Doe", "4711", "\u0664\u0665\u0666"


def customers_masked(bench: Any, upstream: Any, *asked: str) -> None:
    """Assert that a job on `CUSTOMERS` sends no value of the columns `who` and `firm`, and puts all back."""
    upstream.reply = answer()
    bench.succeed(*asked, "--mask", "column:who,column:firm")
    sent = "".join(json.dumps(seen.json, ensure_ascii=False) for seen in upstream.seen)
    assert [value for value in PERSONAL if value in sent] == []
    assert [row["answer"].removeprefix("echo: ") for row in bench.answers()] == [row["text"] for row in CUSTOMERS]


@pytest.mark.parametrize(
    "asked",
    [
        ("--prompt", "{{text}}"),
        ("--prompt", "{% if text %}{{text}}{% endif %}"),
        pytest.param(("--prompt-column", "text"), marks=pytest.mark.thorough),
        pytest.param(("--prompt", "{{text}}", "--split", "50"), marks=pytest.mark.features("documents")),
        pytest.param(
            ("--prompt", "{{text}}", "--together", "4"), marks=[pytest.mark.features("together"), pytest.mark.thorough]
        ),
    ],
)
def test_the_value_of_a_column_that_is_not_sent_is_masked(bench, upstream, asked):
    bench.write(CUSTOMERS)
    customers_masked(bench, upstream, *asked)


@pytest.mark.parametrize("suffix", ["csv", pytest.param("parquet", marks=pytest.mark.thorough)])
def test_the_columns_of_a_table_are_masked(bench, upstream, suffix):
    bench.input = bench.path / f"in.{suffix}"
    rows = [{name: text_of(value) for name, value in row.items()} for row in CUSTOMERS]
    write_rows(bench.input, rows)
    customers_masked(bench, upstream, "--prompt", "{{text}}")


def test_an_answer_that_is_requested_again_has_no_value_of_a_column(bench, upstream):
    def reply(seen: Any) -> Any:
        (user, host), is_first = MASK.findall(text_in(seen.json))[:2], len(upstream.seen) == 1
        return answer(f"It is {host}, with {user}" if is_first else json.dumps({"said": user}))

    upstream.reply = choose(reply)
    bench.write([{"user": "jane", "host": "example.com", "who": "Ann Lee"}])
    bench.succeed("--prompt", "{{user}}@{{host}}", "--fields", "said", "--mask", "email,column:who")
    assert len(upstream.seen) == 2
    assert "It is [" in upstream.seen[1].raw.decode()
    assert [row["answer"] for row in bench.answers()] == [{"said": "jane"}]
    assert [value for value in ("jane", "example.com") if value in upstream.seen[1].raw.decode()] == []


def test_a_column_that_the_rows_lack_is_refused_before_a_request(bench, upstream):
    bench.write([{"text": "Ann Lee", "note": "Ann Lee"}])
    said = bench.fail("--prompt", "{{text}}", "--mask", "column:note,column:nite", code=1)
    assert "`mask`: the row has no column 'nite'; did you mean note?" in said
    bench.input, bench.output = bench.path / "in.csv", bench.path / "other.csv"
    bench.input.write_text("text,note\nAnn Lee,Ann Lee\n")
    said = bench.fail("--prompt", "{{text}}", "--mask", "column:nite")
    assert "--mask: the input has no column 'nite'; did you mean note?" in said
    assert not upstream.seen


def test_a_row_that_has_changed_before_it_is_sent_is_masked_by_its_new_value(bench, upstream):
    asked = ("--prompt", "{{text}}", "--mask", "column:who")
    bench.write([{"text": "first: Ann Lee", "who": "Ann Lee"}, {"text": "Ann Lee and Bob", "who": "Bob"}])
    bench.half_done({0: Completion("known", "stop")}, *asked)
    bench.write([{"text": "first: Ann Lee", "who": "Bob"}, {"text": "Ann Lee and Bob", "who": "Ann Lee"}])
    bench.succeed(*asked)
    assert [re.sub(MASK, "X", seen.prompt) for seen in upstream.seen] == ["X and Bob"]


def test_a_value_that_a_cell_and_the_prompt_have_together_is_masked(bench, upstream):
    upstream.reply = answer()
    bench.write([{"user": "jane", "host": "example.com", "number": "30 901820"}])
    bench.succeed("--prompt", "Ask {{user}}@{{host}} or +49 {{number}}, or help@acme.com", "--mask", "email,phone")
    assert re.sub(MASK, "X", upstream.seen[0].prompt) == "Ask X@X or +49 X, or X"
    (row,) = objects_in(bench.output)
    assert row["answer"] == "echo: Ask jane@example.com or +49 30 901820, or help@acme.com"


def test_a_schema_that_a_mask_would_break_is_relaxed(bench, upstream):
    def reply(seen: Any) -> Any:
        return answer(json.dumps({"mail": MASK.findall(text_in(seen.json))[0]}))

    upstream.reply = choose(reply)
    mail = {"type": "string", "format": "email", "maxLength": 20}
    schema = {"type": "object", "properties": {"mail": mail}, "required": ["mail"], "additionalProperties": False}
    bench.write([MAIL, {"mail": "jane.with.a.long.name@example.com", "note": ""}])
    bench.here(bench.command("--prompt", PROMPT, "--schema", json.dumps(schema), "--mask", "email"))
    sent = upstream.seen[0].json["response_format"]["json_schema"]["schema"]["properties"]["mail"]
    assert sent == {"type": "string"}
    first, second = objects_in(bench.output)
    assert first["answer"] == {"mail": "jane@example.com"}
    assert second["error"]["code"] == "invalid_answer", "the answer with the value is checked by the whole schema"


def asked(messages: list[Any], **parameters: Any) -> Request:
    sampling = Sampling.model_validate({"mask": KINDS, **parameters})
    return Request(0, conversation_from_messages(messages, "messages"), sampling)


def step(following: Any) -> MaskedRequests:
    made = MaskedRequests(openai_configuration("http://127.0.0.1:1").config)
    made.wrap(following)
    return made


TURNS = [
    {"role": "system", "content": "Context: jane@example.com"},
    {"role": "user", "content": [{"type": "text", "text": "+49 30 901820"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "send", "arguments": '{"to": "a@b.de"}'}}],
    },
    {"role": "tool", "content": '{"card": "4111 1111\\n1111 1111"}', "tool_call_id": "call_4111111111111111"},
]


async def test_all_turns_of_a_conversation_have_masks_and_tool_calls_have_values():
    async def following(request: Request, call: Call) -> Completion:
        sent = json.dumps(request.conversation.as_messages())
        masks = MASK.findall(sent)
        assert len(masks) == 4
        assert "call_4111111111111111" in sent
        arguments = json.dumps({"to": masks[3]})
        return Completion("", "tool_calls", tool_calls=({"function": {"name": "send", "arguments": arguments}},))

    outcome = await step(following).answer(asked(TURNS), Call(Facts()))
    assert isinstance(outcome, Completion)
    assert json.loads(outcome.tool_calls[0]["function"]["arguments"]) == {"to": "4111 1111\\n1111 1111"}


async def test_the_body_of_another_request_has_masks():
    async def following(request: Request, call: Call) -> Completion:
        assert request.extra["model"] == "jane@example.com"
        assert len(MASK.findall(str(request.extra["input"]))) == 1
        return Completion("", vectors=(b"1234",))

    sampling = Sampling.model_validate({"mask": KINDS})
    body = {"model": "jane@example.com", "input": ["to jane@example.com", "none"]}
    request = Request(0, Conversation(()), sampling, body, path="/embeddings")
    outcome = await step(following).answer(request, Call(Facts()))
    assert isinstance(outcome, Completion)
    assert outcome.vectors == (b"1234",)


async def test_all_texts_of_an_outcome_have_values():
    def texts(request: Request) -> dict[str, Any]:
        (mask,) = MASK.findall(str(request.conversation.texts))
        return {"details": {"quotes": [f"of {mask}"]}, "reasoning": f"to {mask}"}

    async def answered(request: Request, call: Call) -> Completion:
        return Completion("yes", "stop", reply=MASK.findall(str(request.conversation.texts))[0], **texts(request))

    async def failed(request: Request, call: Call) -> Failure:
        mask = MASK.findall(str(request.conversation.texts))[0]
        return Failure(
            PromptmillError(Code.INVALID_ANSWER, "No."), text=mask, part=f'{{"a": "{mask}"}}', **texts(request)
        )

    messages = [{"role": "user", "content": "Write to jane@example.com."}]
    completion = await step(answered).answer(asked(messages), Call(Facts()))
    failure = await step(failed).answer(asked(messages), Call(Facts()))
    assert isinstance(completion, Completion)
    assert isinstance(failure, Failure)
    for outcome in (completion, failure):
        assert outcome.details == {"quotes": ["of jane@example.com"]}
        assert outcome.reasoning == "to jane@example.com"
    assert completion.reply == failure.text == "jane@example.com"
    assert failure.part == '{"a": "jane@example.com"}'


async def test_an_image_is_refused_before_it_is_sent():
    image = {
        "type": "image_url",
        "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"},
    }
    outcome = await step(None).answer(asked([{"role": "user", "content": [image]}]), Call(Facts()))
    assert isinstance(outcome, Failure)
    assert "An image, a PDF or a recording cannot be masked" in str(outcome.error)


async def test_a_growing_answer_shows_values_and_no_part_of_a_mask():
    shown: list[str] = []

    async def following(request: Request, call: Call) -> Completion:
        text = f"to {request.conversation.texts[0]}!"
        assert call.preview is not None
        for end in range(len(text) + 1):
            call.preview(Growing(text[:end]))
        return Completion(text, "stop")

    call = Call(Facts(), preview=lambda growing: shown.append(growing.text))
    before = call.preview
    await step(following).answer(asked([{"role": "user", "content": "jane@example.com"}]), call)
    assert call.preview is before
    assert shown[-1].startswith("to jane@example.com")
    assert all("to jane@example.com!".startswith(one) for one in shown)


def test_a_dry_run_shows_the_prompts_with_masks(bench, upstream):
    bench.write([MAIL])
    done = bench.here(bench.command("--prompt", PROMPT, "--mask", "email", "--dry-run"))
    assert "Mark it: Write to [EMAIL_" in done.stdout + done.stderr
    assert "jane@example.com" not in done.stdout + done.stderr
    assert not upstream.seen


@pytest.mark.parametrize("body", [{"messages": [{"role": "user", "content": "to jane@example.com"}]}])
def test_a_dry_run_of_a_batch_file_shows_the_masks_of_the_job(bench, body):
    bench.write([{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", **body}}])
    done = bench.here(bench.command("--mask", "email", "--dry-run"))
    assert "to [EMAIL_" in done.stdout + done.stderr


@pytest.mark.parametrize("further", [(), ("--dry-run",)])
def test_a_missing_package_ends_a_job_before_its_first_request(bench, upstream, monkeypatch, further):
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    bench.write([MAIL])
    assert "The kind `phone` of masks needs phonenumbers" in bench.fail("--prompt", PROMPT, "--mask", "phone", *further)
    assert not upstream.seen


def test_a_function_that_fails_on_a_text_costs_this_row_alone(bench, upstream, monkeypatch):
    upstream.reply = answer()
    (bench.path / "failing.py").write_text(
        "def found(text):\n    if 'Jane' in text: raise KeyError(text)\n    return [(0, 4, 'WORD')]\n"
    )
    monkeypatch.syspath_prepend(str(bench.path))
    bench.write([MAIL, {"mail": "hello", "note": "x"}])
    bench.fail("--prompt", "{{mail}}{{note}}", "--mask", "failing:found", code=1)
    failed, answered = bench.answers()
    assert "failing:found failed on this text (KeyError)" in failed["error"]["message"]
    assert "Jane" not in failed["error"]["message"]
    assert answered["answer"] == "echo: hellox"
    assert len(upstream.seen) == 1


async def test_a_long_text_is_masked_and_put_back_beside_the_event_loop():
    threads: list[bool] = []

    class Step(MaskedRequests):
        def masked(self, request: Request, secret: bytes) -> Any:
            threads.append(threading.current_thread() is threading.main_thread())
            return super().masked(request, secret)

    async def following(request: Request, call: Call) -> Completion:
        return Completion(request.conversation.texts[0], "stop")

    made = Step(openai_configuration("http://127.0.0.1:1").config)
    made.wrap(following)
    for text in ("jane@example.com ", "jane@example.com " * 10_000):
        outcome = await made.answer(asked([{"role": "user", "content": text}]), Call(Facts()))
        assert outcome.text == text
    long = asked([{"role": "user", "content": "hi"}]).changed(extra={"tools": ["word " * 10_000]})
    for _ in range(2):
        await made.answer(long, Call(Facts()))
    assert threads == [True, False, False, True], "the parameters of many requests are masked once"


async def test_a_failure_has_values_in_all_of_its_texts():
    def everywhere(text: str) -> Any:
        return {"body": {"list": [text, {"a": text}]}}

    async def following(request: Request, call: Call) -> Failure:
        (mask,) = MASK.findall(request.conversation.texts[0])
        error = PromptmillError(Code.TRUNCATED, "cut")
        part = json.dumps({"to": mask})
        return Failure(error, text=f"to {mask}", part=part, reasoning=mask, details=everywhere(mask), sources=[mask])

    outcome = await step(following).answer(asked([{"role": "user", "content": "jane@example.com"}]), Call(Facts()))
    assert isinstance(outcome, Failure)
    value = "jane@example.com"
    assert (outcome.text, outcome.part, outcome.reasoning) == (f"to {value}", json.dumps({"to": value}), value)
    assert (outcome.details, outcome.sources) == (everywhere(value), [value])


def test_a_summary_counts_the_values_by_kind_also_over_several_runs(bench, upstream):
    upstream.reply = answer()
    rows = [{"mail": f"jane{n}@example.com, jane{n}@example.com", "note": "+49 30 901820"} for n in range(4)]
    rows += [{"mail": "call 030 901820 or 0170/1234567", "note": "4 pieces of 05/06/2024, 0.50 EUR, 12:30"}]
    bench.write(rows)
    asked = ("--prompt", f"For boss@example.com: {PROMPT}", "--mask", "email,phone")
    bench.succeed(*asked, "--limit", "2")
    status = bench.succeed(*asked)
    assert status["masks"]["like_phones"] == 1
    assert status["masks"]["values"] == {"email": 4, "phone": 4}, "a value of the prompt is no row's"
    done = bench.here(bench.command(*asked, "--again", "all"))
    assert "1 row has digits like a phone; name their country, such as phone:DE" in done.stdout + done.stderr
    assert "4 phones" in done.stdout + done.stderr
    assert bench.status()["masks"]["values"]["phone"] == 4, "an answer that is replaced does not count"


@pytest.mark.features("documents")
def test_the_values_in_the_pieces_of_a_long_text_count(bench, upstream):
    upstream.reply = choose(lambda seen: answer(json.dumps({"said": None})))
    bench.write([{"text": "word " * 100 + "jane@example.com " + "word " * 100 + "bob@example.com"}])
    status = bench.succeed("--prompt", "{{text}}", "--fields", "said", "--split", "80", "--mask", "email")
    assert status["masks"]["values"]["email"] >= 2


@pytest.mark.features("batches")
def test_the_values_of_a_batch_count(bench):
    with BatchServer("openai") as server:
        server.answers = prompt_of
        bench.write([{"text": f"jane{n}@example.com"} for n in range(3)])
        given = {"base_url": server.base_url}
        status = bench.succeed("--prompt", "{{text}}", "--mask", "email", "--batch", "--poll", "0.1s", **given)
    assert status["masks"]["values"] == {"email": 3}


@pytest.mark.features("report")
def test_a_report_has_the_counts(bench, upstream):
    upstream.reply = answer()
    bench.write([MAIL])
    bench.succeed("--prompt", PROMPT, "--mask", "email", "--report", str(bench.path / "r.html"))
    assert "1 email" in (bench.path / "r.html").read_text()


@pytest.mark.features("documents")
@pytest.mark.parametrize("fields", [(), ("--fields", "said")])
def test_a_value_that_is_cut_between_two_pieces_has_the_mask_of_the_whole_value(bench, upstream, fields):
    def reply(seen: Any) -> Any:
        found = " ".join(MASK.findall(text_in(seen.json)))
        return answer(json.dumps({"said": found or None}) if fields else found)

    upstream.reply = choose(reply)
    values = ("4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "Annegret Schmidtbauer", "0049 30 901820 77")
    texts = [" ".join([*["word"] * (n + 60), values[n % 4], *["word"] * 30]) for n in range(24)]
    bench.write([{"text": text, "other": "word " * 5} for text in texts])
    (bench.path / "names.csv").write_text("name\nAnnegret Schmidtbauer\n")
    kinds = f"card,iban,phone,{bench.path / 'names.csv'}"
    prompt = "Who? {{other}} {{text}}" if fields else "Who? {{text}} {{other}}"
    bench.succeed("--prompt", prompt, "--split", "57", "--mask", kinds, *fields)
    parts = re.compile(r"4111|1111|DE89|3704|0532|Annegret|Schmidtbauer|901820|0049")
    assert [found for seen in upstream.seen for found in parts.findall(seen.raw.decode())] == []
    for n, row in enumerate(bench.answers()):
        said = row["answer"]["said"] if fields else row["answer"]
        assert values[n % 4] in str(said) or not said


def test_a_value_that_begins_in_long_words_of_the_prompt_is_masked(bench, upstream):
    upstream.reply = answer()
    bench.write([{"number": "30 901820"}])
    bench.succeed("--prompt", f"{'word ' * 40}+49 {{{{number}}}}", "--mask", "phone")
    assert "901820" not in upstream.seen[0].raw.decode()


async def test_a_sound_that_the_endpoint_has_is_refused():
    turn = {"role": "assistant", "content": "hi", "audio": {"id": "audio_1"}}
    outcome = await step(None).answer(asked([turn]), Call(Facts()))
    assert isinstance(outcome, Failure)
    assert "a recording cannot be masked" in str(outcome.error)


def test_a_list_of_names_masks_single_names_in_the_body_of_another_request(tmp_path):
    (tmp_path / "names.txt").write_text("Mark\n")
    raw = {**openai_configuration("http://127.0.0.1:1")._raw, "sampling_params": {"mask": str(tmp_path / "names.txt")}}
    made = MaskedRequests(Configuration(raw).config)
    body = {"input": ["Mark is here"], "encoding_format": "float"}
    sent, masks = made.masked(Request(0, Conversation(()), Sampling(), body, path="/embeddings"), b"secret")
    assert "Mark" not in str(sent.extra)
    assert masks.put_back(sent.extra["input"][0]) == "Mark is here"
    words = made.masked(Request(0, Conversation(()), Sampling(), {"note": "Mark it"}), b"secret")[0]
    assert words.extra == {"note": "Mark it"}, "in the words of a prompt, a single name may be another word"


@pytest.mark.parametrize(("system", "is_kept"), [("For all rows.", True), ("For bob@example.com.", False)])
def test_the_beginning_that_requests_share_is_kept_unless_it_has_masks(system, is_kept):
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "jane@example.com"}]
    shared = Shared(len(system), "key")
    sent = step(None).masked(asked(turns).changed(shared=shared), b"secret")[0]
    assert sent.shared == (shared if is_kept else NOTHING_SHARED)
