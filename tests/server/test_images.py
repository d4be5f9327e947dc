"""`multimodal_generate` as a client sees it."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from talk import codes, sent


@pytest.fixture(autouse=True)
def _among_the_pictures(tmp_path, monkeypatch):
    """The server may read images in its working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    return paths


def _url(path):
    return f"data:image/png;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def _parts(upstream, number=0):
    content = sent(upstream, number)["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return [part["text"] if part["type"] == "text" else part["image_url"]["url"] for part in content]


async def test_without_a_tag_images_follow_the_text(talk, upstream, pictures):
    assert (await talk("multimodal_generate", multimodal_path=[pictures], prompt_ls=["what?"])).structured_content == {
        "ans_ls": ["echo: what?"]
    }
    assert _parts(upstream) == ["what?", _url(pictures[0]), _url(pictures[1])]


@pytest.mark.thorough
@pytest.mark.parametrize("top", [{}, {"image_tag": "<img>"}])
async def test_the_kth_tag_is_replaced_by_the_kth_image(serve, upstream, pictures, top):
    more = {} if top else {"image_tag": "<img>"}
    async with serve(top=top) as talk:
        await talk("multimodal_generate", multimodal_path=[pictures], prompt_ls=["a<img>b<img>"], **more)
    assert _parts(upstream) == ["a", _url(pictures[0]), "b", _url(pictures[1])]


async def test_the_tag_of_a_call_goes_before_the_configured_one(serve, upstream, pictures):
    async with serve(top={"image_tag": "<img>"}) as talk:
        await talk("multimodal_generate", multimodal_path=[pictures[:1]], prompt_ls=["<img>[i]"], image_tag="[i]")
    assert _parts(upstream) == ["<img>", _url(pictures[0])]


async def test_a_wrong_number_of_tags_is_that_items_error(talk, upstream, pictures):
    result = await talk(
        "multimodal_generate",
        multimodal_path=[pictures, pictures[:1], []],
        prompt_ls=["<img>", "<img> <img>", "no picture <img>"],
        image_tag="<img>",
    )
    assert codes(result) == {0: "invalid_input", 1: "invalid_input"}
    assert result.structured_content["ans_ls"] == ["", "", "echo: no picture <img>"]
    assert len(upstream.seen) == 1


async def test_a_prompt_without_images_is_plain_text(talk, upstream):
    await talk("multimodal_generate", multimodal_path=[[]], prompt_ls=["just text"])
    assert _parts(upstream) == "just text"


@pytest.mark.parametrize("paths", [[], [[]], [[], [], []]])
async def test_a_list_of_images_per_prompt_or_the_call_fails(talk, upstream, paths):
    said = await talk.error("multimodal_generate", multimodal_path=paths, prompt_ls=["a", "b"])
    assert f"multimodal_path has {len(paths)} entries but prompt_ls has 2" in said
    assert not upstream.seen


@pytest.mark.thorough
async def test_an_image_that_cannot_be_read_is_that_items_error_with_its_whole_path(
    serve, tmp_path, monkeypatch, pictures
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("the secret is hunter2")
    async with serve() as talk:
        result = await talk(
            "multimodal_generate",
            multimodal_path=[["0.png"], ["nowhere.png"], ["notes.txt"], [f"file://{pictures[1]}"], [_url(pictures[0])]],
            prompt_ls=list("abcde"),
        )
    assert result.structured_content["ans_ls"] == ["echo: a", "", "", "echo: d", "echo: e"]
    assert codes(result) == {1: "invalid_image", 2: "invalid_image"}
    missing, text = (entry["message"] for entry in result.structured_content["errors"])
    assert str(tmp_path / "nowhere.png") in missing
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "source", ["~nobody-of-that-name/a.png", "file://[/a.png", "\ud800.png", "http://a/\ud800.png"]
)
async def test_an_image_under_an_impossible_name_is_that_items_error_alone(talk, source):
    result = await talk("multimodal_generate", multimodal_path=[[source], []], prompt_ls=["a", "b"])
    assert result.structured_content["ans_ls"] == ["", "echo: b"]
    assert codes(result) == {0: "invalid_image"}


@pytest.mark.thorough
async def test_an_openai_message_may_bring_its_image(talk, upstream, pictures):
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": pictures[0]}}]
    await talk.answers({"role": "user", "content": parts})
    assert _parts(upstream) == ["what?", _url(pictures[0])]


@pytest.mark.thorough
async def test_a_large_photo_arrives_whole(talk, upstream, tmp_path):
    out = io.BytesIO()
    Image.effect_noise((1200, 900), 90).convert("RGB").save(out, "PNG")
    (tmp_path / "photo.png").write_bytes(out.getvalue())
    await talk("multimodal_generate", multimodal_path=[[str(tmp_path / "photo.png")]], prompt_ls=["?"])
    assert base64.b64decode(_parts(upstream)[1].partition(",")[2]) == out.getvalue()
