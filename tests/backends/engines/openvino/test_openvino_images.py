"""Images on the openvino engine: answers as transformers gives them, and what goes wrong with one item alone."""

import asyncio
import base64
import dataclasses
import io
import shutil

import pytest
from PIL import Image

from hub import Mirror, environment
from image_families import SIDE, generated, make, template
from openvino_vlm import convert
from promptmill.backends.engines.host import create
from promptmill.core.request import conversation_from_prompt
from waiting import PATIENCE_S, until

pytest.importorskip("openvino_genai")
pytestmark = [pytest.mark.engine, pytest.mark.thorough]

NAMES = ("tiles", "noise", "lines")
ASKED = [
    ("what is #?", ["tiles"]),
    ("# then # then # end", ["noise", "lines", "tiles"]),
    ("no image here", []),
    ("##", ["lines", "tiles"]),
    ("##", ["tiles", "lines"]),
    ("a longer text before the only image, # and a bit more behind it", ["lines"]),
    ("x", []),
]
LENGTHS = (9, 40, 25, 14, 14, 30, 33)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Images of the model's own size: OpenVINO's way of scaling differs from Pillow's by a rounding."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(NAMES):
        Image.effect_noise((SIDE, SIDE), 60 + 40 * number).convert("RGB").save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make("llava", tmp_path_factory.mktemp("llava") / "model", template("llava"))


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    return convert(source, tmp_path_factory.mktemp("openvino") / "model")


@pytest.fixture(scope="module")
def engine(engines, converted):
    return engines(converted, backend="openvino", precision="float32")


@pytest.fixture
def with_template(converted, tmp_path, make_engine):
    """Load the model with another chat template, or none; it stands with the tokenizer's graph."""

    def load(text):
        import openvino

        folder = tmp_path / "model"
        shutil.copytree(converted, folder)
        graph = openvino.Core().read_model(folder / "openvino_tokenizer.xml")
        assert graph.has_rt_info("chat_template")
        graph.set_rt_info(text, "chat_template")
        (folder / "openvino_tokenizer.bin").unlink()
        openvino.save_model(graph, folder / "other.xml")
        for kind in ("xml", "bin"):
            (folder / f"other.{kind}").replace(folder / f"openvino_tokenizer.{kind}")
        (folder / "chat_template.jinja").unlink()
        return make_engine(folder, backend="openvino", precision="float32")

    return load


def expected(source, pictures, text, names, tokens, before="user: ", after="</s>assistant: "):
    images = [Image.open(pictures / f"{name}.png").convert("RGB") for name in names]
    text = text.replace("#", "<image>\n") if names else text  # OpenVINO puts a line's end behind each
    return generated(source, f"{before}{text}{after}", images, tokens)


def request_of(desk, asked, lengths, pictures, extra=None, **sampling):
    requests = desk.requests(["x"] * len(asked), extra, max_tokens=tuple(lengths), **sampling)
    conversations = [
        conversation_from_prompt(text, "").with_images([str(pictures / f"{name}.png") for name in names], "#")
        for text, names in asked
    ]
    return [
        dataclasses.replace(request, conversation=conversation)
        for request, conversation in zip(requests, conversations, strict=True)
    ]


def answered(desk, engine, asked, lengths, pictures, **sampling):
    return desk.answer(engine, request_of(desk, asked, lengths, pictures, {"ignore_eos": True}, **sampling))


def test_a_batch_answers_as_transformers_does_one_by_one(desk, engine, source, pictures):
    outcomes = answered(desk, engine, ASKED, LENGTHS, pictures)
    wanted = [expected(source, pictures, *one, length) for one, length in zip(ASKED, LENGTHS, strict=True)]
    assert [getattr(outcome, "text", outcome) for outcome in outcomes] == wanted
    assert len(set(wanted)) == len(wanted)
    assert [outcome.usage.completion_tokens for outcome in outcomes] == list(LENGTHS)
    texts = [len(f"user: {text.replace('#', '')}") + 1 + len("assistant: ") for text, _ in ASKED]
    images = [(4 + 1) * len(names) for _, names in ASKED]
    assert [outcome.usage.prompt_tokens for outcome in outcomes] == [
        sum(both) for both in zip(texts, images, strict=True)
    ]


def test_an_answer_that_ends_at_a_stop_string_counts_its_images_too(desk, engine, source, pictures):
    whole = expected(source, pictures, *ASKED[0], 30)
    (outcome,) = answered(desk, engine, ASKED[:1], [30], pictures, stop=[whole[10:13]])
    assert (outcome.text, outcome.finish_reason) == (whole[: whole.find(whole[10:13])], "stop")
    assert outcome.usage.prompt_tokens == 32


def test_images_count_as_the_tokens_that_they_are(desk, engine, pictures):
    many, too_many = ("#" * 150, ["tiles"] * 150), ("#" * 250, ["tiles"] * 250)
    long, fits, refused = answered(desk, engine, [("#", ["tiles"]), many, too_many], [5000] * 3, pictures)
    for outcome in (long, fits):
        assert outcome.finish_reason == "length"
        assert outcome.usage.prompt_tokens + outcome.usage.completion_tokens == 1024
    assert refused.error.code == "context_length"
    assert "images included" in refused.error.message


def test_a_text_too_long_is_refused_before_its_images_are_looked_at(desk, engine, pictures):
    (outcome,) = answered(desk, engine, [("#" + "x" * 20_000, ["tiles"])], [5], pictures)
    assert outcome.error.code == "context_length"


@pytest.mark.parametrize("mark", ["<image>", "<ov_genai_image_0>", "<ov_genai_image_7>"])
def test_the_models_own_mark_in_a_text_is_the_items_error(desk, engine, pictures, mark):
    asked = [(f"this {mark} is no image, but # is", ["tiles"]), (f"nor is {mark}", []), ("# alone", ["tiles"])]
    beside, alone, good = answered(desk, engine, asked, [5] * 3, pictures)
    assert (beside.error.code, alone.error.code) == ("invalid_input", "invalid_input")
    assert mark in beside.error.message
    assert mark in alone.error.message
    assert good.usage.completion_tokens == 5


def test_an_image_broken_behind_its_header_is_the_items_error(desk, engine, pictures):
    whole = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(whole, "PNG")
    broken = base64.b64encode(whole.getvalue()[:9000]).decode()
    bad, good = request_of(desk, [("#", ["tiles"])] * 2, [5] * 2, pictures)
    url = f"data:image/png;base64,{broken}"
    bad = dataclasses.replace(bad, conversation=conversation_from_prompt("what is", "").with_images([url], None))
    outcomes = desk.answer(engine, [bad, good])
    assert outcomes[0].error.code == "invalid_image"
    assert outcomes[1].usage.completion_tokens


def test_calls_with_images_and_without_run_beside_each_other_and_end_when_cancelled(desk, engine, source, pictures):
    endless = [("# and #", ["noise", "tiles"])] * 400  # more than the engine answers meanwhile on any machine

    async def beside():
        crowd = desk.call(engine, [])
        crowd.source.requests = request_of(desk, endless, [900] * len(endless), pictures, {"ignore_eos": True})
        task = asyncio.create_task(crowd.run())
        await until(lambda: crowd.call.in_flight >= 12)
        calls = []
        for asked, length in zip(ASKED[:3], LENGTHS, strict=False):
            call = desk.call(engine, [])
            call.source.requests = request_of(desk, [asked], [length], pictures, {"ignore_eos": True})
            calls.append(call.run())
        answers = [outcome.text for (outcome,) in await asyncio.gather(*calls)]
        unfinished = len(endless) - len(crowd.sink.outcomes)
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE_S)
        assert task.cancelled()
        return answers, unfinished

    answers, unfinished = desk.wait(beside())
    assert answers == [expected(source, pictures, *ASKED[n], LENGTHS[n]) for n in range(3)]
    assert unfinished, "the crowd was to be on its way"
    (after,) = answered(desk, engine, ASKED[:1], LENGTHS[:1], pictures)
    assert after.text == answers[0]


def test_a_template_of_plain_texts_gets_images_where_they_stand(desk, with_template, source, pictures):
    plain = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    outcomes = answered(desk, with_template(plain), ASKED[:3], LENGTHS[:3], pictures)
    wanted = [expected(source, pictures, *ASKED[n], LENGTHS[n], after="") for n in range(3)]
    assert [getattr(outcome, "text", outcome) for outcome in outcomes] == wanted


def test_without_a_chat_template_images_stand_in_the_plain_text(desk, with_template, source, pictures):
    (outcome,) = answered(desk, with_template(""), [("one # two", ["tiles"])], [20], pictures)
    assert outcome.text == expected(source, pictures, "one # two", ["tiles"], 20, before="", after="")
    assert "no chat template" in " ".join(desk.last_call.warnings)


def test_a_template_that_leaves_texts_out_is_the_items_error(desk, with_template, pictures):
    blind = "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}x"
    good, bad = answered(desk, with_template(blind), [("text", []), ("#", ["tiles"])], [5] * 2, pictures)
    assert good.usage.completion_tokens == 5
    assert bad.error.code == "unsupported"
    assert "0 of the prompt's 1 images" in bad.error.message


def test_it_comes_from_the_hub_by_its_name_and_afterwards_from_the_cache(
    desk, converted, make_config, pictures, tmp_path
):
    async def loaded(url):
        host = create(make_config("we/model", backend="openvino", precision="float32"))
        host._environment.update(environment(url, tmp_path))
        try:
            await host.load(lambda text: None)
            call = desk.call(host, [])
            call.source.requests = request_of(desk, ASKED[:1], [5], pictures, {"ignore_eos": True})
            (outcome,) = await call.run()
        finally:
            await host.aclose()
        return outcome.text

    with Mirror(converted) as mirror:
        first = desk.wait(loaded(mirror.url))
    assert any("openvino_vision_embeddings_model.bin" in path for path in mirror.asked)
    assert desk.wait(loaded(mirror.url)) == first


def test_a_step_that_fails_lets_prompts_with_images_start_over(desk, engine, source, pictures):
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wrong"}}}
    right = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["red", "blue"]}}}
    asked = [*ASKED[:2], ("is # bad?", ["noise"]), ("which is #?", ["noise"])]
    wanted = (None, None, wrong, right)
    first, second, bad, held = answered(desk, engine, asked, [9, 40, 9, 9], pictures, response_format=wanted)
    assert first.text == expected(source, pictures, *ASKED[0], 9)
    assert second.text == expected(source, pictures, *ASKED[1], 40)
    assert bad.error.code == "invalid_input"
    assert "JSON schema" in bad.error.message
    assert held.text.startswith(('"red"', '"blue"'))


def test_a_model_with_images_has_no_probabilities_of_choices_and_says_so(desk, engine):
    (outcome,) = desk.ask(engine, ["Which?"], {"top_choices": 2}, max_tokens=30, choices=["ab", "cd"])
    (said,) = desk.last_call.warnings
    assert (outcome.probabilities, "top_choices" in said) == (None, True)
    assert outcome.text in {'{"answer": "ab"}', '{"answer": "cd"}'}
