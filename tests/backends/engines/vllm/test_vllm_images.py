"""`multimodal_generate` in front of an image model in vLLM: its answers tell which image came where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from piped import Piped
from tiny_vlm import COLOURS, picture, tiny_vlm

pytestmark = [pytest.mark.engine, pytest.mark.stdio, pytest.mark.timeout(900)]  # the first test trains the model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The small image model, with the names that vLLM 0.32 knows its weights by (transformers 5 saves others)."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("vlm") / "model"
    shutil.copytree(tiny_vlm(), folder)
    weights = load_file(folder / "model.safetensors")
    old, new = "vision_tower.", "vision_tower.vision_model."
    renamed = {
        name.replace(old, new) if old in name and new not in name else name: weight for name, weight in weights.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        picture(colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture(scope="module")
def server(model, pictures, tmp_path_factory):
    """One server for all tests of this file."""
    file = tmp_path_factory.mktemp("config") / "parameter.yaml"
    block = {"model_name_or_path": str(model), "dtype": "float32", "limit_mm_per_prompt": {"image": 4}}
    settings = {"backend": "vllm", "backend_configs": {"vllm": block}, "allowed_roots": [str(pictures)]}
    file.write_text(json.dumps(settings | {"sampling_params": {"temperature": 0, "max_tokens": 16}}))
    with Piped(file, environ={"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}) as piped:
        piped.initialize()
        result = piped.result(piped.call("generation_init", backend_configs={}, sampling_params={}, backend="vllm"))
        assert not result.get("isError"), result
        yield piped


@pytest.fixture
def ask(server, pictures):
    """Call `multimodal_generate` with colours for images; return the result."""

    def call(asked, **more):
        paths = [[str(pictures / f"{colour}.png") for colour in colours] for _, colours in asked]
        number = server.call(
            "multimodal_generate", multimodal_path=paths, prompt_ls=[text for text, _ in asked], **more
        )
        result = server.result(number)["structuredContent"]
        # the small model's words begin with a space, as those of many tokenizers do
        return result | {"ans_ls": [answer.strip() for answer in result["ans_ls"]]}

    return call


def test_without_a_tag_images_follow_the_text_in_their_order(ask):
    asked = [("here", ["red", "blue"]), ("here", ["blue", "red"]), ("", ["green", "black", "white", "orange"])]
    assert ask(asked) == {"ans_ls": ["here red blue", "here blue red", "green black white orange"]}


def test_each_tag_is_replaced_by_its_image(ask):
    asked = [
        ("here <img> there", ["red"]),
        ("one <img> two <img>", ["blue", "green"]),
        ("<img> left <img> right", ["black", "white"]),
        ("<img><img> below", ["purple", "yellow"]),
        ("above below", []),
    ]
    assert ask(asked, image_tag="<img>") == {
        "ans_ls": [
            "here red there",
            "one blue two green",
            "black left white right",
            "purple yellow below",
            "above below",
        ]
    }


def test_many_prompts_at_once_get_each_their_own_images(ask):
    names = list(COLOURS)
    asked = [(f"one <img> two{' <img>' * (i % 3)}", [names[(i + k) % 8] for k in range(1 + i % 3)]) for i in range(40)]
    expected = [" ".join(["one", colours[0], "two", *colours[1:]]) for _, colours in asked]
    assert ask(asked, image_tag="<img>") == {"ans_ls": expected}


def test_too_many_images_or_tags_are_that_items_error_alone(ask):
    result = ask([("<img> <img>", ["red"]), ("here <img>", ["blue"])], image_tag="<img>")
    assert result["ans_ls"] == ["", "here blue"]
    result = ask([("one", ["red"] * 5), ("two", ["red"])])
    assert result["ans_ls"] == ["", "two red"]
    assert result["errors"][0]["code"] == "invalid_input"
    assert "At most 4 image" in result["errors"][0]["message"]


def test_an_image_tag_of_the_model_itself_in_the_text_is_no_image(ask):
    result = ask([("here <image> there", []), ("here <image>", ["red"]), ("one", ["blue"])])
    assert result["ans_ls"] == ["", "", "one blue"]
    assert {entry["index"]: entry["code"] for entry in result["errors"]} == {0: "invalid_input", 1: "invalid_input"}


def test_a_text_model_that_gets_an_image_fails_that_item_alone(desk, vllm, pictures):
    image = {"type": "image_url", "image_url": {"url": str(pictures / "red.png")}}
    turns = [{"role": "user", "content": [{"type": "text", "text": "Hi!"}, image]}]
    seen, read = desk.ask(vllm, [turns, "What is the capital of France?"], max_tokens=10)
    assert seen.error.code == "unsupported"
    assert read.text
