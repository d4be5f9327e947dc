"""Images of a call are read once each."""

from __future__ import annotations

import asyncio
import base64

import pytest
from PIL import Image

from promptmill.core.errors import PromptmillError
from promptmill.core.request import ImagePart
from promptmill.images.load import ImageCache, ImageRules


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


async def test_a_source_is_read_once_however_many_ask_at_the_same_time(picture):
    encoded = []
    image_cache = ImageCache(ImageRules(), lambda image: encoded.append(image.media_type) or image.data, None)
    at_once = await asyncio.gather(*(image_cache.read(ImagePart(str(picture))) for _ in range(20)))
    later = await image_cache.read(ImagePart(str(picture)))
    image_cache.close()
    assert {*at_once, later} == {picture.read_bytes()}
    assert encoded == ["image/png"]


async def test_images_that_cannot_be_read_are_forgotten_as_others_are(tmp_path):
    image_cache = ImageCache(ImageRules(), lambda image: image.data, None, kept_bytes=1 << 20)
    for number in range(1000):
        with pytest.raises(PromptmillError, match="no file"):
            await image_cache.read(ImagePart(str(tmp_path / f"{number}.png")))
    assert len(image_cache._readings) < 300


async def test_who_gives_up_does_not_take_the_reading_from_the_others(picture):
    image_cache = ImageCache(ImageRules(), lambda image: image.data, None)
    impatient, patient = (asyncio.ensure_future(image_cache.read(ImagePart(str(picture)))) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    assert await patient == picture.read_bytes()
    image_cache.close()


async def test_no_more_is_kept_than_may_be(tmp_path):
    paths = [str(tmp_path / f"{color}.png") for color in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (4, 4), path.rpartition("/")[2][:-4]).save(path)
    encoded = []
    image_cache = ImageCache(
        ImageRules(), lambda image: encoded.append(1) or bytes(600_000), None, kept_bytes=1_300_000
    )
    for path in [*paths, paths[2], paths[1], paths[0]]:
        await image_cache.read(ImagePart(path))
    image_cache.close()
    assert len(encoded) == 4


async def test_a_failed_reading_fails_everybody_who_wants_it(tmp_path):
    image_cache = ImageCache(ImageRules(), lambda image: image.data, None)
    failures = await asyncio.gather(
        *(image_cache.read(ImagePart(str(tmp_path / "nowhere.png"))) for _ in range(3)), return_exceptions=True
    )
    image_cache.close()
    assert {type(failure) for failure in failures} == {PromptmillError}


async def test_what_is_fetched_is_checked_like_everything_else(picture):
    bodies = {"http://a/x.png": picture.read_bytes(), "HTTPS://a/y.png": b"no image"}

    async def fetch(url):
        return "data:;base64," + base64.b64encode(bodies[url]).decode()

    image_cache = ImageCache(ImageRules(), lambda image: image.data, fetch)
    assert await image_cache.read(ImagePart("http://a/x.png")) == picture.read_bytes()
    with pytest.raises(PromptmillError) as caught:
        await image_cache.read(ImagePart("HTTPS://a/y.png"))
    image_cache.close()
    assert caught.value.code == "invalid_image"
