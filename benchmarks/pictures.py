"""64 images of 2 MB in one call, beside the `openai` package with data URLs in dicts."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.client import OUT
from benchmarks.contestant import prompt
from benchmarks.field import HOW_TO_INSTALL, Field, installed, timed_call
from benchmarks.measure import Row, interleaved, ratio

_IMAGES = 64
_SIDE = 836  # noise does not compress: three bytes a pixel, 2 MB
_IN_FLIGHT = 16


def _make(folder: Path) -> list[str]:
    chance = np.random.default_rng(7)
    paths = []
    for index in range(_IMAGES):
        path = folder / f"{index}.png"
        Image.fromarray(chance.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)).save(path, compress_level=0)
        paths.append(str(path))
    return paths


async def images(field: Field, pairs: int) -> list[Row]:
    """CPU of reading, encoding and sending."""
    what = "CPU for 64 images of 2 MB / openai"
    if not installed("openai"):
        return [Row("images", what, float("nan"), None, detail=HOW_TO_INSTALL)]
    with tempfile.TemporaryDirectory(dir=OUT) as folder:  # the server reads files of its own folder alone
        paths = _make(Path(folder))
        prompts = [prompt(index) for index in range(_IMAGES)]
        async with (
            field.ours(field.fast, _IN_FLIGHT) as server,
            field.contestant("openai", field.fast, _IN_FLIGHT) as openai,
        ):

            async def ours() -> float:
                took = await timed_call(
                    server, "multimodal_generate", multimodal_path=[[path] for path in paths], prompt_ls=prompts
                )
                assert took["answers"] == _IMAGES
                return took["cpu_s"]

            async def theirs() -> float:
                took = await openai.work(prompts=_IMAGES, in_flight=_IN_FLIGHT, images=paths)
                assert took["answers"] == _IMAGES
                return took["cpu_s"]

            await ours(), await theirs()
            found = await interleaved(pairs, ours=ours, openai=theirs)
    value, spread = ratio(found["ours"], found["openai"])
    each = [statistics.median(values) / _IMAGES * 1e3 for values in (found["ours"], found["openai"])]
    return [Row("images", what, value, 0.5, spread=spread, detail=f"{each[0]:.1f} / {each[1]:.1f} ms each", raw=found)]
