"""Labels of the embedded model: by the encoder, with the engine for everything else."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes import openai_config
from promptmill.answers.form import form_of
from promptmill.backends import registry
from promptmill.backends.protocol import Call, Completion, Facts, Failure, FixedShare
from promptmill.cli import main as cli
from promptmill.config.backends import EMBEDDED
from promptmill.config.configuration import Configuration
from promptmill.core.errors import Code, PromptmillError
from promptmill.core.request import EMBEDDINGS, Conversation, ImagePart, Message, Request, Sampling, TextPart
from promptmill.features.embeddings.local import encoders
from promptmill.features.embeddings.local.backend import EncoderBackend
from promptmill.features.embeddings.local.embedded_labels import BY_ENCODER, EmbeddedLabels
from promptmill.service import model

np = pytest.importorskip("numpy")
LABELS = {"choices": ["good", "bad"]}
YES_OR_NO = {"choices": ["yes", "no"]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Letters:
    """An encoder whose vectors are the counts of some letters."""

    temperature = 0.1

    def version(self):
        return "letters 1"

    def encode(self, texts, step=lambda _: None):
        step(len(texts))
        counts = np.array([[text.count(letter) for letter in "god"] for text in texts], np.float32) + 0.01
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


class Engine:
    """An engine that answers with its name."""

    def __init__(self, error=None):
        self.error, self.done = error, []

    async def load(self, report):
        self.done.append("load")
        report("Loading")
        if self.error is not None:
            raise self.error

    def enter(self, call):
        self.done.append("enter")
        return FixedShare(8)

    async def answer(self, request, call):
        return Completion("engine", "stop")

    async def leave(self, call):
        self.done.append("leave")

    async def aclose(self):
        self.done.append("close")


def made(sampling=None, engine=None, load=lambda report: Letters()):
    config = Configuration({"backend": "openvino", "sampling_params": sampling or {}}).config
    engine = engine or Engine()
    return EmbeddedLabels(config, engine, EncoderBackend(load)), engine


def asking(text, sampling, **changes):
    sampling = Sampling(**sampling)
    return Request(0, Conversation((Message("user", text),)), sampling, form=form_of(sampling), **changes)


async def answered(backend, *requests):
    """Run a call with these requests; return the call and the texts of its answers."""
    call = Call()
    backend.enter(call)
    outcomes = [await backend.answer(request, call) for request in requests]
    await backend.leave(call)
    return call, [outcome.text if isinstance(outcome, Completion) else outcome.error.code for outcome in outcomes]


async def test_labels_of_the_configuration_need_no_engine():
    backend, engine = made(LABELS)
    said = []
    await backend.load(said.append)
    call, texts = await answered(backend, asking("good", LABELS), asking("bad", LABELS))
    assert (texts, [*call.warnings], engine.done) == (["good", "bad"], [BY_ENCODER], [])
    await backend.aclose()
    assert engine.done == ["close"]


async def test_each_is_loaded_when_it_is_needed():
    loads = []
    backend, engine = made(load=lambda report: loads.append(1) or Letters())
    await backend.load(lambda _: None)
    assert (engine.done, loads) == (["load"], [])
    _, texts = await answered(backend, asking("Hi", {}), asking("good", LABELS), asking("bad", LABELS))
    assert (texts, engine.done, loads) == (["engine", "good", "bad"], ["load", "enter", "leave"], [1])

    backend, engine = made(LABELS)
    await backend.load(lambda _: None)
    call, texts = await answered(backend, asking("good", LABELS), asking("Hi", {}), asking("Hi", {}))
    assert (texts, engine.done) == (["good", "engine", "engine"], ["load", "enter", "leave"])
    assert [*call.warnings] == [BY_ENCODER]


@pytest.mark.parametrize(
    ("sampling", "changes", "warning"),
    [
        ({"choices": ["good", "bad"]}, {"extra": {"tools": [{}]}}, "calls no tools"),
        ({"response_format": {"type": "json_object"}}, {}, ""),
        ("schema", {}, ""),
        ("boolean", {}, "no yes or no, as the field urgent asks"),
    ],
)
async def test_what_the_encoder_cannot_answer_is_for_the_engine(sampling, changes, warning):
    fields = {"schema": {"city": {"type": "string"}, "mood": {"enum": ["good", "bad"]}}}
    fields["boolean"] = {"urgent": {"type": "boolean"}}
    if isinstance(sampling, str):
        schema = {"type": "object", "properties": fields[sampling]}
        sampling = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    backend, _ = made()
    await backend.load(lambda _: None)
    call, texts = await answered(backend, asking("good", sampling, **changes))
    assert texts == ["engine"]
    assert warning in "".join(call.warnings)
    assert bool(call.warnings) == bool(warning)


async def test_images_are_for_the_engine():
    backend, _ = made(LABELS)
    await backend.load(lambda _: None)
    parts = (TextPart("good"), ImagePart("a.png"))
    request = asking("", LABELS).changed(conversation=Conversation((Message("user", parts),)))
    call, texts = await answered(backend, request)
    assert texts == ["engine"]
    assert "reads texts alone" in "".join(call.warnings)


async def test_yes_and_no_need_definitions():
    backend, engine = made(YES_OR_NO)
    await backend.load(lambda _: None)
    assert engine.done == []
    call = Call()
    backend.enter(call)
    failure = await backend.answer(asking("good", YES_OR_NO), call)
    assert isinstance(failure, Failure)
    assert failure.concerns_all
    assert not call.warnings
    assert "Define each label" in failure.error.hint
    _, texts = await answered(backend, asking("good", YES_OR_NO | {"definitions": {"yes": "good", "no": "bad"}}))
    assert texts == ["yes"]


async def test_without_the_encoder_the_engine_gives_labels_and_says_why():
    tries = []

    def load(report):
        tries.append(1)
        raise PromptmillError(Code.ENGINE_LOAD_FAILED, "The encoder could not be downloaded.")

    backend, engine = made(LABELS, load=load)
    await backend.load(lambda _: None)
    assert engine.done == ["load"]
    call, texts = await answered(backend, asking("good", LABELS), asking("bad", LABELS))
    assert (texts, len(tries)) == (["engine", "engine"], 1)
    assert [*call.warnings] == [
        "The encoder could not be downloaded. smollm2-135m-instruct answers instead.",
    ]


async def test_an_engine_that_cannot_be_loaded_ends_the_call_and_the_next_one_tries_again():
    backend, engine = made(LABELS, Engine(PromptmillError(Code.MISSING_DEPENDENCY, "No engine.")))
    await backend.load(lambda _: None)
    for _ in range(2):
        with pytest.raises(PromptmillError, match="No engine"):
            await answered(backend, asking("Hi", {}))
    assert engine.done == ["load", "load"]
    with pytest.raises(PromptmillError, match="No engine"):
        await made(engine=engine)[0].load(lambda _: None)


async def test_a_close_ends_a_running_load():
    class Slow(Engine):
        def __init__(self):
            super().__init__()
            self.began, self.closed = asyncio.Event(), asyncio.Event()

        async def load(self, report):
            self.began.set()
            await self.closed.wait()
            raise PromptmillError(Code.SHUTDOWN, "closed")

        async def aclose(self):
            self.closed.set()

    backend, engine = made(engine=Slow())
    loading = asyncio.ensure_future(backend.load(lambda _: None))
    await engine.began.wait()
    await backend.aclose()
    with pytest.raises(PromptmillError, match="closed"):
        await loading


async def _answered_by(of_job, request, load=lambda report: Letters()):
    backend, _ = made(load=load)
    call = Call(Facts(of_job=of_job))
    backend.enter(call)
    outcome = await backend.answer(request, call)
    assert isinstance(outcome, Completion)
    return outcome.text, outcome.answered_by


def _no_encoder(code):
    def load(report):
        raise PromptmillError(code, "It is not here.")

    return load


async def test_an_answer_of_a_call_names_the_encoder():
    name = encoders.settings_in(embedded()).model
    assert await _answered_by(False, asking("good", LABELS)) == ("good", name)
    assert await _answered_by(False, asking("Hi", {})) == ("engine", "")


async def test_a_job_is_of_the_encoder_so_that_only_other_answers_name_their_model():
    name = encoders.settings_in(embedded()).model
    assert await _answered_by(True, asking("good", LABELS)) == ("good", "")
    assert await _answered_by(True, asking("good", LABELS, required=frozenset({"choices"}))) == ("good", name)
    failing = _no_encoder(Code.ENGINE_LOAD_FAILED)
    assert await _answered_by(True, asking("good", LABELS), failing) == ("engine", EMBEDDED)
    assert await _answered_by(True, asking("good", LABELS), _no_encoder(Code.MISSING_DEPENDENCY)) == ("engine", "")


async def test_vectors_are_of_the_encoder():
    backend, engine = made({"embed": True})
    await backend.load(lambda _: None)
    request = Request(0, Conversation(()), Sampling(), {"input": ["good", "bad"]}, path=EMBEDDINGS)
    call = Call()
    backend.enter(call)
    outcome = await backend.answer(request, call)
    assert isinstance(outcome, Completion)
    assert (len(outcome.vectors), engine.done) == (2, [])


def embedded(**sampling):
    block = {"openvino": {"model_name_or_path": EMBEDDED}}
    raw = {"backend": "openvino", "backend_configs": block, "sampling_params": sampling}
    return Configuration(raw).config


@pytest.mark.parametrize(
    ("sampling", "is_of_encoder"),
    [
        (LABELS, True),
        ({"embed": True}, True),
        ({}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({**LABELS, "quote": True}, False),
        ({**LABELS, "together": 2}, False),
    ],
)
def test_the_parameters_show_whether_the_encoder_answers(sampling, is_of_encoder):
    pytest.importorskip("openvino")
    assert registry.answerer(embedded(**sampling)) == ("e5" if is_of_encoder else EMBEDDED)


def test_without_the_package_of_an_encoder_the_embedded_model_answers(monkeypatch):
    monkeypatch.setattr(encoders, "_NEEDS", {"e5": ("no_such_package", "it", "cpu")})
    assert registry.answerer(embedded(**LABELS)) == EMBEDDED


@pytest.mark.parametrize("backend", ["openvino", "encoder"])
def test_labels_that_a_run_would_refuse_are_refused_before_it(backend):
    alone = Configuration({"backend": backend, "sampling_params": YES_OR_NO}).config
    config = embedded(**YES_OR_NO) if backend == "openvino" else alone
    with pytest.raises(PromptmillError, match=r"say nothing: yes, no\. Define each label"):
        registry.answerer(config)


def test_the_encoder_backend_names_its_encoder_and_refuses_other_forms():
    fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}
    assert registry.answerer(Configuration({"backend": "encoder", "sampling_params": LABELS}).config) == "e5"
    assert registry.answerer(Configuration({"backend": "encoder"}).config) == "e5"
    with pytest.raises(PromptmillError, match="writes none, so it cannot answer the field city"):
        registry.answerer(Configuration({"backend": "encoder", "sampling_params": fields}).config)


def test_the_model_of_another_backend_answers():
    config = openai_config("https://host.test/v1", model_name="m")
    assert (registry.answerer(config), registry.other_paths(config)) == ("m", config.record.other_paths)


@pytest.fixture
def bulk(folder, tmp_path, monkeypatch):
    """Run `promptmill bulk` on two texts with the shipped configuration; return its exit code, status and errors."""
    del folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("text\nGreat food and kind people\nCold soup and a rude waiter\n")

    def run(capsys, *options):
        code = cli.main(["bulk", "in.csv", "out.csv", "--backend", "openvino", "--json", *options])
        said = capsys.readouterr()
        return code, json.loads(said.out or "{}"), said.err

    return run


TOPIC = ("--prompt", "Topic? {{text}}", "--choices", "food,service")


def test_a_job_and_its_output_name_the_encoder(bulk, capsys, tmp_path):
    code, status, _ = bulk(capsys, *TOPIC)
    assert (code, status["model"], status["answered"]) == (0, "e5", 2)
    assert "answered_by" not in (tmp_path / "out.csv").read_text()
    assert cli.main(["compare", "out.csv", "--by", "text"]) in {0, 2}
    assert cli.main(["jobs"]) == 0
    assert "e5" in capsys.readouterr().out.splitlines()[-1].split()


@pytest.mark.parametrize("option", ["--dry-run", "--limit=1"])
def test_a_dry_run_refuses_what_the_run_refuses(bulk, capsys, option):
    code, _, error = bulk(capsys, "--prompt", "Good? {{text}}", "--choices", "yes,no", option)
    assert code == 2
    assert "these labels say nothing: yes, no" in error


def test_vectors_without_a_model_are_of_the_encoder(bulk, capsys):
    code, status, _ = bulk(capsys, "--embed", "{{text}}")
    assert (code, status["model"], status["answered"]) == (0, "e5", 2)


def test_a_dry_run_refuses_vectors_that_the_backend_does_not_make(bulk, capsys):
    code, _, error = bulk(capsys, "--embed", "{{text}}", "--model", "elsewhere", "--dry-run")
    assert code == 2
    assert "The backend openvino makes no embeddings" in error


@pytest.mark.parametrize(
    ("block", "is_replaced"),
    [({"model_name_or_path": "smollm2-135m-instruct"}, True), ({"model_name_or_path": "x"}, False)],
)
async def test_only_the_embedded_model_has_an_encoder(block, is_replaced):
    pytest.importorskip("openvino_genai")
    config = Configuration({"backend": "openvino", "backend_configs": {"openvino": block}}).config
    assert isinstance(await model._create(config), EmbeddedLabels) is is_replaced


async def test_without_the_feature_the_engine_answers_alone(monkeypatch):
    monkeypatch.setenv("PROMPTMILL_WITHOUT", "embeddings")
    block = {"openvino": {"model_name_or_path": "smollm2-135m-instruct"}}
    config = Configuration({"backend": "openvino", "backend_configs": block}).config
    assert not isinstance(await model._create(config), EmbeddedLabels)
