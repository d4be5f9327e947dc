"""`multimodal_generate` in front of a real image model: its answers tell which image came where."""

import asyncio
import base64
import json
import os
import sys

import pytest
import yaml

from openvino_vlm import kept
from piped import Piped
from tiny_vlm import COLOURS, picture, tiny_vlm
from waiting import eventually

# The first test of a clean clone trains the model: 60 s of a CPU, minutes on a busy machine.
pytestmark = [pytest.mark.engine, pytest.mark.stdio, pytest.mark.thorough, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with `red.png` and so on."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        picture(colour).save(folder / f"{colour}.png")
    (folder / "notes.txt").write_text("no image at all")
    return folder


def _written(folder, backend, model, **top):
    file = folder / "vlm.yaml"
    block = {"model_name_or_path": str(model)}
    sampling = {"temperature": 0, "max_tokens": 16}
    file.write_text(
        yaml.safe_dump({"backend": backend, "backend_configs": {backend: block}, "sampling_params": sampling} | top)
    )
    return file


@pytest.fixture(scope="module", params=["hf", "openvino"])
def backend(request):
    if request.param == "openvino":
        pytest.importorskip("openvino_genai")
    return request.param


@pytest.fixture(scope="module")
def config(tmp_path_factory, backend, pictures):
    model = tiny_vlm() if backend == "hf" else kept(tiny_vlm())
    return _written(tmp_path_factory.mktemp("config"), backend, model, allowed_roots=[str(pictures)])


@pytest.fixture(scope="module")
def server(config, tmp_path_factory):
    """One server for all tests of this file: the model is loaded once."""
    with Piped(config, environ={"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}) as piped:
        piped.initialize()
        yield piped


@pytest.fixture
def ask(server, pictures):
    """Call `multimodal_generate` with colours for images; return the result."""

    def call(asked, **more):
        paths = [[str(pictures / f"{colour}.png") if colour in COLOURS else colour for colour in c] for _, c in asked]
        number = server.call(
            "multimodal_generate", multimodal_path=paths, prompt_ls=[text for text, _ in asked], **more
        )
        return server.result(number)

    return call


def _answers(result):
    assert "errors" not in result["structuredContent"], result
    return result["structuredContent"]["ans_ls"]


def test_without_a_tag_images_follow_the_text_in_their_order(ask):
    asked = [("here", ["red", "blue"]), ("here", ["blue", "red"]), ("", ["green", "black", "white", "orange"])]
    assert _answers(ask(asked)) == ["here red blue", "here blue red", "green black white orange"]


def test_each_tag_is_replaced_by_its_image(ask):
    asked = [
        ("here <img> there", ["red"]),
        ("one <img> two <img>", ["blue", "green"]),
        ("<img> left <img> right", ["black", "white"]),
        ("<img><img> below", ["purple", "yellow"]),
    ]
    assert _answers(ask(asked, image_tag="<img>")) == [
        "here red there",
        "one blue two green",
        "black left white right",
        "purple yellow below",
    ]


def test_a_prompt_without_images_is_answered_beside_the_others(ask):
    asked = [("above below", []), ("here <img>", ["red"]), ("two one", [])]
    assert _answers(ask(asked, image_tag="<img>")) == ["above below", "here red", "two one"]


def test_many_prompts_at_once_get_each_their_own_images(ask):
    names = list(COLOURS)
    asked = [(f"one <img> two{' <img>' * (i % 3)}", [names[(i + k) % 8] for k in range(1 + i % 3)]) for i in range(40)]
    expected = [" ".join(["one", colours[0], "two", *colours[1:]]) for _, colours in asked]
    assert _answers(ask(asked, image_tag="<img>")) == expected


def test_a_wrong_number_of_tags_is_that_items_error_alone(ask):
    asked = [("<img> <img>", ["red"]), ("here <img>", ["blue"]), ("<img>", ["red", "blue"])]
    result = ask(asked, image_tag="<img>")["structuredContent"]
    assert result["ans_ls"] == ["", "here blue", ""]
    assert {entry["index"]: entry["code"] for entry in result["errors"]} == {0: "invalid_input", 2: "invalid_input"}


def test_images_come_from_paths_files_and_data(ask, pictures):
    data = f"data:image/png;base64,{base64.b64encode((pictures / 'blue.png').read_bytes()).decode()}"
    asked = [("here", [(pictures / "green.png").as_uri(), data, "red"])]
    assert _answers(ask(asked)) == ["here green blue red"]


def test_an_image_that_cannot_be_had_is_that_items_error_alone(ask, pictures):
    missing, text = str(pictures / "nowhere.png"), str(pictures / "notes.txt")
    asked = [("one", [missing]), ("two", ["red"]), ("one", ["red", text]), ("one", ["http://127.0.0.1:9/x.png"])]
    result = ask(asked)["structuredContent"]
    assert result["ans_ls"] == ["", "two red", "", ""]
    assert {entry["index"]: (entry["code"], entry["attempts"]) for entry in result["errors"]} == dict.fromkeys(
        (0, 2, 3), ("invalid_image", 0)
    )
    assert missing in result["errors"][0]["message"]


def test_text_goes_through_the_other_tools(server):
    assert server.answers("below above") == ["below above"]
    result = server.result(
        server.call("multiturn_generate", messages=[{"role": "user", "content": "here"}], system_prompt="two one")
    )
    assert _answers(result) == ["here"]


def test_a_message_may_bring_its_images(server, pictures):
    parts = [
        {"type": "image_url", "image_url": {"url": str(pictures / "red.png")}},
        {"type": "text", "text": "left"},
        {"type": "image_url", "image_url": {"url": str(pictures / "blue.png")}},
    ]
    number = server.call("multiturn_generate", messages=[{"role": "user", "content": parts}])
    assert _answers(server.result(number)) == ["red left blue"]


def test_prompt_tokens_include_the_images(ask, backend):
    result = ask([("here", []), ("here", ["red"])])
    without, with_one = (usage["prompt_tokens"] for usage in result["_meta"]["usage"])
    assert with_one == without + 4 + (backend == "openvino")  # which puts a line's end behind an image


def test_a_job_reads_images_too(server, pictures):
    rows = [("one", "red"), ("two", "blue"), ("here", "nowhere")]
    lines = [{"id": text, "prompt": text, "images": [str(pictures / f"{colour}.png")]} for text, colour in rows]
    source, target = pictures / "job.jsonl", pictures / "answers.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    server.result(server.call("bulk_generate", input_file=str(source), output_file=str(target)))
    eventually(target.exists)
    found = {row["id"]: row for row in map(json.loads, target.read_text(encoding="utf-8").splitlines())}
    assert [found[text]["answer"] for text, _ in rows] == ["one red", "two blue", ""]
    assert found["here"]["error"]["code"] == "invalid_image"


async def test_the_client_of_fastmcp_sees_the_same(config, pictures):
    from fastmcp import Client
    from fastmcp.client.transports import StdioTransport

    arguments = ["-m", "promptmill", "serve", "--config", str(config)]
    transport = StdioTransport(sys.executable, arguments, env=dict(os.environ), keep_alive=False)
    async with Client(transport) as client:
        paths = [[str(pictures / "red.png"), str(pictures / "blue.png")], [str(pictures / "green.png")]]
        given = {"multimodal_path": paths, "prompt_ls": ["here # there #", "# one"], "image_tag": "#"}
        results = await asyncio.gather(*(client.call_tool("multimodal_generate", given) for _ in range(3)))
    assert [result.structured_content for result in results] == [{"ans_ls": ["here red there blue", "green one"]}] * 3
