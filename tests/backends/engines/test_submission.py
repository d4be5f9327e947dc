"""The submit messages to an engine's process, and how it decodes their images."""

import base64
import contextlib
import io
from pathlib import Path

import pytest
from PIL import Image

from promptmill.backends.engines.host import EngineShare, json_base64
from promptmill.backends.engines.submission import draws, pictures
from promptmill.core.errors import PromptmillError
from promptmill.core.request import Request, Sampling, conversation_from_messages, conversation_from_prompt
from promptmill.images.load import ImageCache, ImageRules, WebImages
from promptmill.system import frames
from promptmill.system.call_files import FileRule


@pytest.fixture
def paint(tmp_path):
    """Write a picture; the same arguments always name the same file."""

    def make(colour, name=None, mode="RGB", **options):
        path = tmp_path / (name or f"{colour}.png")
        Image.new(mode, (6, 4), colour).save(path, **options)
        return str(path)

    return make


@pytest.fixture
def submitted(closing):
    """Return the message that reaches the engine."""

    async def send(conversation, rules=None, *, takes_images=True):
        images = ImageCache(rules or ImageRules(), json_base64, closing(WebImages()).fetch) if takes_images else None
        with contextlib.closing(EngineShare(1, 7, images)) as share:
            frame = await share.frame(3, Request(0, conversation, Sampling(max_tokens=5), {"a": 1}))
        return frames.read(io.BytesIO(frame))

    return send


def _colours(message):
    return [picture.getpixel((1, 1)) for picture in pictures(message.get("images", ()))]


async def test_text_goes_as_it_is(submitted):
    message = await submitted(conversation_from_prompt("grüße", ""))
    assert message == {
        "type": "submit",
        "run": 7,
        "id": 3,
        "messages": [{"role": "user", "content": "grüße"}],
        "sampling": {"max_tokens": 5},
        "extra": {"a": 1},
    }
    assert pictures(message.get("images", ())) == []


async def test_images_are_numbered_over_the_whole_conversation(submitted, paint):
    def shown(colour):
        return {"type": "image_url", "image_url": {"url": paint(colour), "detail": "low"}}

    turns = [
        {"role": "system", "content": "see"},
        {"role": "user", "content": [shown("red"), {"type": "text", "text": "and"}, shown("blue")]},
        {"role": "assistant", "content": "red and blue", "name": "x"},
        {"role": "user", "content": [{"type": "text", "text": "now"}, shown("red")]},
    ]
    message = await submitted(conversation_from_messages(turns, ""))
    assert [turn["content"] for turn in message["messages"]] == [
        "see",
        [{"type": "image", "index": 0}, {"type": "text", "text": "and"}, {"type": "image", "index": 1}],
        "red and blue",
        [{"type": "text", "text": "now"}, {"type": "image", "index": 2}],
    ]
    assert message["messages"][2]["name"] == "x"
    assert _colours(message) == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


@pytest.mark.parametrize("source", ["path", "file", "data"])
async def test_an_image_may_come_from_anywhere(submitted, paint, source):
    path = paint("lime")
    data = base64.b64encode(Path(path).read_bytes()).decode()
    name = {"path": path, "file": Path(path).as_uri(), "data": f"data:image/png;base64,{data}"}[source]
    message = await submitted(conversation_from_prompt("x", "").with_images([name], None))
    assert message["images"] == [data]
    assert _colours(message) == [(0, 255, 0)]


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8000, (128, 128, 128)),
    ],
)
async def test_every_mode_becomes_rgb_and_what_is_transparent_white(submitted, paint, mode, colour, seen):
    message = await submitted(conversation_from_prompt("x", "").with_images([paint(colour, "a.png", mode)], None))
    assert _colours(message) == [seen]


async def test_a_palette_with_a_transparent_colour_is_seen_on_white(submitted, tmp_path):
    image = Image.new("P", (6, 4), 0)
    image.putpalette([255, 0, 0] * 256)
    image.save(tmp_path / "p.png", transparency=0)
    message = await submitted(conversation_from_prompt("x", "").with_images([str(tmp_path / "p.png")], None))
    assert _colours(message) == [(255, 255, 255)]


async def test_a_turned_photo_arrives_upright(submitted, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(tmp_path / "turned.jpg", exif=exif)
    message = await submitted(conversation_from_prompt("x", "").with_images([str(tmp_path / "turned.jpg")], None))
    assert [picture.size for picture in pictures(message.get("images", ()))] == [(4, 8)]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("/nowhere/x.png", "invalid_image"),
        ("http://127.0.0.1:9/x.png", "invalid_image"),
        ("https://[::1]/x.png", "invalid_image"),
        ("data:image/png;base64,AAAA", "invalid_image"),
        ("ftp://host/x.png", "invalid_image"),
    ],
)
async def test_an_image_that_cannot_be_had_is_the_items_error(submitted, source, code):
    with pytest.raises(PromptmillError) as caught:
        await submitted(conversation_from_prompt("x", "").with_images([source], None))
    assert caught.value.code == code


async def test_the_rules_of_the_settings_hold(submitted, paint, tmp_path):
    conversation = conversation_from_prompt("x", "").with_images([paint("red")], None)
    for rules in (ImageRules(FileRule((tmp_path / "elsewhere",)), 100), ImageRules(max_pixels=23)):
        with pytest.raises(PromptmillError) as caught:
            await submitted(conversation, rules)
        assert caught.value.code == "invalid_image"
    assert (await submitted(conversation, ImageRules(FileRule((tmp_path,)), 24)))["images"]


async def test_a_model_that_reads_only_text_never_has_an_image_read(submitted):
    with pytest.raises(PromptmillError) as caught:
        await submitted(conversation_from_prompt("x", "").with_images(["/nowhere/x.png"], None), takes_images=False)
    assert caught.value.code == "unsupported"


async def test_an_image_that_is_broken_behind_its_header_is_the_items_error(submitted, tmp_path):
    whole = io.BytesIO()
    Image.effect_noise((60, 60), 90).save(whole, "PNG")
    data = whole.getvalue()
    (tmp_path / "torn.png").write_bytes(data[:1000] + bytes(500) + data[1500:])
    message = await submitted(conversation_from_prompt("x", "").with_images([str(tmp_path / "torn.png")], None))
    with pytest.raises(PromptmillError) as caught:
        pictures(message.get("images", ()))
    assert caught.value.code == "invalid_image"
    assert "Image 1 of the prompt" in caught.value.message


@pytest.mark.parametrize("neutral", [{}, {"top_p": 1.0}, {"top_k": 0}, {"top_k": -1}, {"min_p": 0.0}, {"seed": 1}])
def test_values_without_an_effect_do_not_ask_for_chance(neutral):
    assert not draws(neutral, by_default=False)
    assert draws(neutral, by_default=True)


@pytest.mark.parametrize("limit", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_limits_of_the_tokens_ask_for_chance(limit):
    assert draws(limit, by_default=False)
