"""Image models of many families answer in our batches as in transformers' own loop, one prompt at a time."""

import asyncio
import dataclasses

import pytest
from PIL import Image

from image_families import FAMILIES, SHOWN, generated, make, template
from promptmill.core.request import conversation_from_prompt
from waiting import PATIENCE_S, until

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

SIZES = {"tall": (30, 70), "wide": (80, 31), "square": (56, 56), "small": (17, 20)}
ASKED = [
    ("what is #?", ["tall"]),
    ("# then # then # end", ["wide", "small", "square"]),
    ("no image here", []),
    ("##", ["square", "tall"]),
    ("a longer text before the only image, # and a bit more behind it", ["small"]),
    ("x", []),
]
LENGTHS = (9, 40, 25, 14, 30, 33)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, (name, size) in enumerate(SIZES.items()):
        Image.effect_noise(size, 60 + 20 * number).convert("RGB").save(folder / f"{name}.png")
    return folder


def _conversations(pictures, asked):
    return [
        conversation_from_prompt(text, "").with_images([str(pictures / f"{name}.png") for name in names], "#")
        for text, names in asked
    ]


def _expected(folder, family, pictures, text, names, tokens):
    images = [Image.open(pictures / f"{name}.png").convert("RGB") for name in names]
    rendered = f"user: {text.replace('#', SHOWN[family]) if names else text}</s>assistant: "
    return generated(folder, rendered, images, tokens)


def _call(desk, host, conversations, lengths):
    requests = desk.requests(["x"] * len(conversations), {"ignore_eos": True}, max_tokens=tuple(lengths))
    call = desk.call(host, [])
    call.source.requests = [
        dataclasses.replace(request, conversation=conversation)
        for request, conversation in zip(requests, conversations, strict=True)
    ]
    return call


def _texts(outcomes):
    return [getattr(outcome, "text", outcome) for outcome in outcomes]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_transformers_does_one_by_one(desk, make_engine, tmp_path, pictures, family):
    folder = make(family, tmp_path / family, template(family))
    host = make_engine(folder, dtype="float32", batch_size=4)
    expected = [_expected(folder, family, pictures, *ASKED[n], LENGTHS[n]) for n in range(len(ASKED))]
    answered = desk.wait(_call(desk, host, _conversations(pictures, ASKED), LENGTHS).run())
    assert _texts(answered) == expected
    assert len(set(expected)) == len(expected)


def test_a_paused_row_with_images_goes_on_where_it_was(desk, make_engine, tmp_path, pictures):
    folder = make("qwen2_vl", tmp_path / "model", template("qwen2_vl"))
    host = make_engine(folder, dtype="float32", batch_size=1)
    asked = ("# and #", ["wide", "tall"])
    expected = _expected(folder, "qwen2_vl", pictures, *asked, 300)

    async def interrupted():
        long = asyncio.create_task(_call(desk, host, _conversations(pictures, [asked]), [300]).run())
        shorts = 0
        while not long.done():
            await desk.call(host, ["x"], max_tokens=3).run()
            shorts += 1
        return _texts(await long), shorts

    answered, shorts = desk.wait(interrupted())
    assert answered == [expected]
    assert shorts > 1, "it was to be paused"


def test_a_template_that_puts_images_first_still_gets_them_where_they_stand(desk, make_engine, tmp_path, pictures):
    folder = make("llava", tmp_path / "model", template("llava", images_first=True))
    host = make_engine(folder, dtype="float32")
    asked = [("one # two # three", ["tall", "wide"]), ("# behind", ["small"]), ("text", [])]
    answered = desk.wait(_call(desk, host, _conversations(pictures, asked), [20] * 3).run())
    assert _texts(answered) == [_expected(folder, "llava", pictures, *one, 20) for one in asked]


def test_without_a_chat_template_images_stand_in_the_plain_text(desk, make_engine, tmp_path, pictures):
    folder = make("llava", tmp_path / "model", None)
    host = make_engine(folder, dtype="float32")
    call = _call(desk, host, _conversations(pictures, [("one # two", ["tall"])]), [20])
    image = Image.open(pictures / "tall.png").convert("RGB")
    assert _texts(desk.wait(call.run())) == [generated(folder, "one <image> two", [image], 20)]
    assert "no chat template" in " ".join(call.call.warnings)


def test_a_template_without_a_place_for_images_is_the_items_error(desk, make_engine, tmp_path, pictures):
    texts = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    blind = "{% for m in messages %}" + texts + "{% endfor %}"
    folder = make("llava", tmp_path / "model", blind)
    host = make_engine(folder, dtype="float32")
    asked = [("what is this", []), ("#", ["tall"])]
    good, bad = desk.wait(_call(desk, host, _conversations(pictures, asked), [5] * 2).run())
    assert good.usage.completion_tokens == 5
    assert bad.error.code == "unsupported"
    assert "0 of the prompt's 1 images" in bad.error.message


def test_the_models_own_mark_in_a_text_is_the_items_error(desk, make_engine, tmp_path, pictures):
    folder = make("llava", tmp_path / "model", template("llava"))
    host = make_engine(folder, dtype="float32")
    asked = [("this <image> is no image, but # is", ["tall"]), ("# alone", ["tall"])]
    bad, good = desk.wait(_call(desk, host, _conversations(pictures, asked), [5] * 2).run())
    assert (bad.error.code, good.usage.completion_tokens) == ("invalid_input", 5)
    assert "<image>" in bad.error.message


def test_images_count_as_the_tokens_that_they_are(desk, make_engine, tmp_path, pictures):
    folder = make("qwen2_vl", tmp_path / "model", template("qwen2_vl"))
    host = make_engine(folder, dtype="float32")
    asked = [("#", ["small"]), ("# #", ["square"] * 2), ("#" * 60, ["square"] * 60), ("#" * 200, ["square"] * 200)]
    small, two, many, far_too_many = desk.wait(_call(desk, host, _conversations(pictures, asked), [900] * 4).run())
    assert two.usage.prompt_tokens == small.usage.prompt_tokens - 1 + 2 * 4 + 2 + 1
    for outcome in (small, two, many):
        assert outcome.finish_reason == "length"
        assert outcome.usage.prompt_tokens + outcome.usage.completion_tokens <= 1024
    assert far_too_many.error.code == "context_length"
    assert "images included" in far_too_many.error.message


def test_a_copy_without_an_image_processor_reads_text(desk, make_engine, tmp_path, pictures):
    folder = make("gemma3", tmp_path / "model", "{% for m in messages %}{{ m.content }}{% endfor %}")
    for file in ("preprocessor_config.json", "processor_config.json"):
        (folder / file).unlink(missing_ok=True)
    host = make_engine(folder, dtype="float32")
    asked = [("# what", ["tall"]), ("plain", [])]
    bad, good = desk.wait(_call(desk, host, _conversations(pictures, asked), [5] * 2).run())
    assert bad.error.code == "unsupported"
    assert good.text == generated(folder, "plain", [], 5)


def test_an_image_that_takes_its_time_holds_up_its_own_item_alone(desk, make_engine, tmp_path, pictures):
    host = make_engine(make("llava", tmp_path / "model", template("llava")), dtype="float32", batch_size=2)
    never = asyncio.Event()

    class Slow:
        async def fetch(self, url):
            await never.wait()

        async def aclose(self):
            pass

    host._web = Slow()
    slow = conversation_from_prompt("x", "").with_images(["https://slow.example/x.png"], None)
    conversations = [slow, *_conversations(pictures, [("#", ["tall"]), ("text", [])])]

    async def given_up():
        call = _call(desk, host, conversations, [3] * 3)
        running = asyncio.create_task(call.run())
        await until(lambda: call.call.counts.done >= 2)
        assert sorted(call.sink.outcomes) == [1, 2]
        assert call.call.in_flight == 1
        running.cancel()
        await asyncio.wait({running}, timeout=PATIENCE_S)
        assert running.cancelled()
        assert call.call.in_flight == 0
        return _texts(await _call(desk, host, conversations[2:], [3]).run())

    assert len(desk.wait(given_up())) == 1
