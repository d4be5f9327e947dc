"""Forms of several questions on engines: one text, computed once, and questions that do not see each other."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

import hf_parts as hf
from promptmill.core.form import Choice, Form, Question, Scale, YesNo

pytestmark = pytest.mark.engine
QUESTIONS = (
    Question("team", "Which team should answer?", Choice(("billing", "delivery", "technology"), ("money", "", ""))),
    Question("urgent", "Is it urgent?", YesNo()),
    Question("anger", "How angry is the customer?", Scale(("calm", "annoyed", "furious"))),
    Question("stars", "How many stars would the customer give?", Scale((1, 2, 3, 4, 5))),
    Question("topics", "", Choice(("delivery", "invoice"), many=True)),
)
MAIL = "The parcel came late and the box was broken, and nobody answered my mail. "


@pytest.fixture(params=["hf", "openvino"])
def engine(request, engine_of):
    pytest.importorskip({"hf": "torch", "openvino": "openvino_genai"}[request.param])
    return engine_of(request.param)


def ask(desk: Any, engine: Any, text: str, *forms: Form) -> list[Any]:
    requests = desk.requests([text] * len(forms))
    return desk.answer(engine, [one.changed(form=form) for one, form in zip(requests, forms, strict=True)])


@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.thorough), 12])
def test_a_question_has_the_same_answer_alone_and_among_others(desk, engine, times):
    together, *alone = ask(desk, engine, MAIL * times, Form(QUESTIONS), *(Form((one,)) for one in QUESTIONS))
    values = json.loads(together.text)
    assert [*values] == [one.name for one in QUESTIONS]
    for one, outcome in zip(QUESTIONS, alone, strict=True):
        assert json.loads(outcome.text) == {one.name: values[one.name]}
        for name, shares in outcome.probabilities.items():
            assert together.probabilities[name] == pytest.approx(shares, abs=2e-3)
    assert sum(together.probabilities["team"].values()) == pytest.approx(1, abs=1e-4)
    assert together.usage.prompt_tokens < 1.5 * alone[0].usage.prompt_tokens
    assert not desk.last_call.warnings


def test_a_text_that_is_too_long_is_one_error(desk, engine):
    (outcome,) = ask(desk, engine, MAIL * 2000, Form(QUESTIONS))
    assert (outcome.error.code.value, outcome.part) == ("context_length", "")


def test_options_that_the_tokenizer_changes_are_answered_without_a_word(desk, engine):
    form = Form((Question('a "b"', "", Choice(("<|im_end|>", "\\", "東京"))),))
    (outcome,) = ask(desk, engine, MAIL, form)
    assert json.loads(outcome.text)['a "b"'] in {"<|im_end|>", "\\", "東京"}
    assert not desk.last_call.warnings, "nobody has asked for probabilities"


@pytest.fixture
def model(tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny()
    return hf.LanguageModel(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


@hf.NEEDED
def test_the_questions_about_a_long_text_compute_only_their_own_tokens(model):
    computed: list[int] = []
    model.network.register_forward_pre_hook(
        lambda _, __, given: computed.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    builder, schedule = hf.SequenceBuilder(model, refuse_unsupported=False), hf.Schedule()
    sent: dict[int, Any] = {}

    class Enough(BaseException):
        """Everything is answered."""

    class Channel:
        def send(self, message: dict[str, Any]) -> None:
            sent[message["id"]] = message
            if message["id"] < 3:
                add(message["id"] + 1)
            else:
                raise Enough

    def add(number: int) -> None:
        turns = [{"role": "user", "content": "x" * 300 + f" question {number}"}]
        field = {"name": f"field {number}", "values": [["ab", "ab"], ["cd", None]]}
        sampling, of_form = (
            {"choices": ["ab", "cd"], "temperature": 0},
            {"field": field, "text": 7, "follows": number > 0},
        )
        schedule.add(
            builder.build({"run": 1, "id": number, "messages": turns, "sampling": sampling, "extra": {}, **of_form})
        )

    add(0)
    with pytest.raises(Enough):
        hf.Decoder(model, schedule, cast("Any", Channel()), hf.Capacity(8), chunk=512).run()
    assert all("error" not in message for message in sent.values())
    assert computed[0] > 300
    assert max(computed[1:]) < 60
