"""Tables of other libraries, made and read back by the libraries themselves."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

import promptmill
from fakes import KEY
from replies import answer
from upstream import Upstream

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package `datasets`, which keeps what it makes in the test's folder and asks nobody."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets as package

    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return package


@pytest.fixture
def options(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a call is given to reach the test's endpoint."""
    upstream.reply = answer()
    monkeypatch.setenv("PROMPTMILL_STATE", str(tmp_path / "state"))
    return {"model": "m", "base_url": upstream.url, "api_key": KEY, "progress": False}


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]


def labelled(datasets: Any) -> Any:
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = {"prompt": ["a", "b", "c"], "image": pictures(), "label": ["cat", "dog", "cat"]}
    return datasets.Dataset.from_dict(rows, features=features)


def sent(upstream: Upstream) -> dict[str, Image.Image]:
    """The picture that came with each prompt."""
    found = {}
    for seen in upstream.seen:
        text, picture = seen.json["messages"][-1]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])
        found[text["text"]] = Image.open(io.BytesIO(data)).convert("RGB")
    return found


def colors(images: Any) -> list[Any]:
    return [image.convert("RGB").getpixel((0, 0)) for image in images]


def test_a_data_set_with_images_and_labels_runs_as_a_file_and_comes_back_as_one(datasets, options, upstream, tmp_path):
    labelled(datasets).to_parquet(tmp_path / "in.parquet")
    promptmill.bulk(tmp_path / "in.parquet", tmp_path / "out.parquet", **options)
    assert colors(sent(upstream)[name] for name in "abc") == colors(pictures())
    found = datasets.Dataset.from_parquet(str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found.features["label"].names == ["cat", "dog"]
    assert isinstance(found.features["image"], datasets.Image)
    assert colors(found["image"]) == colors(pictures())
    assert (found["label"][:], [text[:6] for text in found["answer"]]) == ([0, 1, 0], ["echo: "] * 3)


def test_a_data_set_in_memory_gets_the_answers_as_columns(datasets, options, upstream):
    rows = labelled(datasets)
    found = promptmill.bulk(rows, **options).table()
    assert colors(sent(upstream)[name] for name in "abc") == colors(pictures())
    assert isinstance(found, datasets.Dataset)
    assert found.features["label"].names == ["cat", "dog"]
    assert colors(found["image"]) == colors(pictures())
    assert len(found["answer"]) == 3


def test_a_polars_frame_gets_the_answers_as_columns(options, tmp_path):
    frame = pl.DataFrame({"prompt": ["a", "b"], "size": [1, 2], "tags": [["x"], []]})
    found = promptmill.bulk(frame, **options).table()
    assert isinstance(found, pl.DataFrame)
    assert found["error"].to_list() == [None, None]
    assert found.drop("error", "finish_reason").rows() == [("a", 1, ["x"], "echo: a"), ("b", 2, [], "echo: b")]
    frame.write_parquet(tmp_path / "in.parquet")
    promptmill.bulk(tmp_path / "in.parquet", tmp_path / "out.parquet", **options)
    back = pl.read_parquet(tmp_path / "out.parquet")
    assert back.select(frame.columns).equals(frame)
    assert json.loads(json.dumps(back["answer"].to_list())) == ["echo: a", "echo: b"]
