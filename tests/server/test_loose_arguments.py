"""What clients and language models send beside the letter of the schema, and mean as everybody would."""

import base64
import json
from importlib.util import find_spec

import pytest
from PIL import Image

from fakes import openai_configuration
from promptmill.config.configuration import Configuration
from talk import sent, serving, text

WAV = base64.b64encode(b"RIFF\0\0\0\0WAVEfmt ").decode()


@pytest.fixture(autouse=True)
def _among_the_pictures(tmp_path, monkeypatch):
    """The server may read images in its working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.mark.thorough
async def test_null_for_an_optional_argument_is_its_default(talk):
    generated = await talk("generate", prompt_ls=["a"], system_prompt=None)
    with_images = await talk(
        "multimodal_generate", prompt_ls=["a"], multimodal_path=[[]], system_prompt=None, image_tag=None
    )
    turns = await talk("multiturn_generate", messages=[{"role": "user", "content": "a"}], system_prompt=None)
    init = await talk("generation_init", backend_configs={}, sampling_params={}, extra_params=None, backend=None)
    status = await talk("bulk_status", job_id=None)
    missing = await talk("bulk_status", read="all", job_id="x", offset=None, limit=None)
    results, missing = [generated, with_images, turns, init, status], text(missing)
    assert not [text(result) for result in results if result.is_error]
    assert "x" in missing
    assert "offset" not in missing


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("What is 1 + 1?", ["echo: What is 1 + 1?"]),
        ({"role": "user", "content": "hello"}, ["echo: hello"]),
        ('{"content": "hello"}', ["echo: hello"]),
        ('["a", "b"]', ["echo: a", "echo: b"]),
        ("[sic] a text", ["echo: [sic] a text"]),
    ],
)
async def test_a_lone_prompt_is_a_list_of_one(talk, prompts, expected):
    assert (await talk("generate", prompt_ls=prompts)).structured_content == {"ans_ls": expected}


async def test_a_lone_message_is_a_conversation(talk):
    assert (await talk("multiturn_generate", messages={"role": "user", "content": "hi"})).structured_content == {
        "ans_ls": ["echo: hi"]
    }


@pytest.mark.parametrize("form", ["path", "list", "lists", "json"])
async def test_a_lone_image_is_a_list_of_one_at_either_level(talk, upstream, picture, form):
    path = str(picture)
    images = {"path": path, "list": [path], "lists": [[path]], "json": json.dumps([path])}[form]
    assert (
        len((await talk("multimodal_generate", prompt_ls="what?", multimodal_path=images)).structured_content["ans_ls"])
        == 1
    )
    (message,) = sent(upstream)["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url"]


async def test_the_blocks_of_mcp_are_parts_of_a_prompt(upstream, picture):
    image = {"type": "image", "data": base64.b64encode(picture.read_bytes()).decode(), "mimeType": "image/png"}
    audio = {"type": "audio", "data": WAV, "mimeType": "audio/x-wav"}
    embedded = {"type": "resource", "resource": {"uri": "file:///a.txt", "mimeType": "text/plain", "text": "the text"}}
    content = [{"type": "text", "text": "look"}, image, audio, embedded]
    prompts = [{"role": "user", "content": content}, image, {"content": embedded}]
    async with serving(openai_configuration(upstream.url, files=["audio"])) as talk:
        result = await talk("generate", prompt_ls=prompts)
    assert not result.is_error, text(result)
    url = {"url": f"data:image/png;base64,{image['data']}"}
    bodies = [body["messages"][0]["content"] for body in (sent(upstream, number) for number in range(3))]
    whole = next(content for content in bodies if len(content) == 4)
    assert whole == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": url},
        {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}},
        {"type": "text", "text": "the text"},
    ]
    assert [{"type": "image_url", "image_url": url}] in bodies
    assert [{"type": "text", "text": "the text"}] in bodies


def _sound(data: str = WAV, form: str = "wav"):
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": form}}]}


@pytest.mark.parametrize(
    ("files", "sound", "said"),
    [
        ([], _sound(), "not known to take a recording"),
        (["pdf"], _sound(), "not known to take a recording"),
        (["audio"], _sound(base64.b64encode(b"hello").decode()), "is no recording"),
        (["audio"], _sound(""), "is no recording"),
        (["audio"], _sound("not base64!"), "Send a readable recording."),
    ],
)
async def test_a_sound_that_cannot_be_heard_is_not_sent(upstream, files, sound, said):
    async with serving(openai_configuration(upstream.url, files=files)) as talk:
        result = await talk("generate", prompt_ls=[sound])
    assert said in text(result)
    assert not upstream.seen


@pytest.mark.parametrize("sound", [_sound(f"data:audio/x-wav;base64,{WAV}"), _sound(form="mp3")])
async def test_a_sound_is_sent_with_its_own_format_and_without_the_head_of_a_url(upstream, sound):
    async with serving(openai_configuration(upstream.url, files=["audio"])) as talk:
        await talk("generate", prompt_ls=[sound])
    (part,) = sent(upstream)["messages"][0]["content"]
    assert part["input_audio"] == {"data": WAV, "format": "wav"}


@pytest.mark.parametrize("block", [{}, {"openai": {"model_name": "other"}}, {"openai": {}, "vllm": {}}])
async def test_without_a_name_the_only_block_chooses_the_backend_else_the_configuration(upstream, block):
    async with serving(openai_configuration(upstream.url)) as talk:
        result = await talk("generation_init", backend_configs=block, sampling_params={})
        assert (result.is_error, text(result)) == (False, "The backend is `openai`; `backend` chooses another.")
        assert await talk.answers("a") == ["echo: a"]


async def test_the_block_of_an_endpoint_chooses_it_although_the_configuration_names_an_engine(upstream):
    async with serving(Configuration({"backend": "openvino"})) as talk:
        block = {"base_url": upstream.url, "model_name": "test-model"}
        result = await talk("generation_init", backend_configs={"openai": block}, sampling_params={})
        assert (result.is_error, text(result)) == (False, "The backend is `openai`; `backend` chooses another.")
        assert await talk.answers("a") == ["echo: a"]
        again = await talk("generation_init", backend_configs={}, sampling_params={"temperature": 0})
        assert text(again).startswith('backend: is missing, and an earlier call chose openai. `backend: "openvino"`')
        assert await talk.answers("b") == ["echo: b"], "a refused call changes nothing"


async def test_of_several_blocks_one_must_be_named(upstream):
    async with serving(openai_configuration(upstream.url)) as talk:
        blocks = {"hf": {"gpu_ids": "0"}, "openai": {"model_name": "other"}}
        said = await talk.error("generation_init", backend_configs=blocks, sampling_params={})
    assert said == 'backend: is missing: choose `backend: "hf"` or `backend: "openai"`.'


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
@pytest.mark.parametrize("how", ["named", "trusted"])
async def test_a_backend_that_is_not_installed_is_refused_with_that_of_the_only_block(upstream, how):
    named = {"backend": "vllm"} if how == "named" else {}
    blocks = {"vllm": {"model_name_or_path": "x"}}
    async with serving(Configuration({"backend_configs": blocks}, trust_client=how == "trusted")) as talk:
        block = {"base_url": upstream.url, "model_name": "test-model"}
        said = await talk.error("generation_init", backend_configs={"openai": block}, sampling_params={}, **named)
    assert said.startswith("The vllm backend needs vllm")
    assert said.endswith('The call has a block for `backend: "openai"`.')


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["asked for", "trusted"])
async def test_the_word_vllm_means_vllm_and_a_pipelines_client_gets_the_default_of_old(upstream, how):
    configuration = Configuration(openai_configuration(upstream.url)._raw, trust_client=how == "trusted")
    named = {"backend": "vllm"} if how == "asked for" else {}
    async with serving(configuration) as talk:
        result = await talk("generation_init", backend_configs={}, sampling_params={}, **named)
    assert "backend_configs.vllm" in text(result)


async def test_arguments_that_a_client_adds_to_every_tool_are_left_out_with_a_warning(talk):
    added = {"sessionId": "s", "action": "sendMessage", "chatInput": "hi", "toolCallId": "call_1", "kwargs": {}}
    result = await talk("generate", prompt_ls=["a"], **added)
    assert result.structured_content == {"ans_ls": ["echo: a"]}
    assert result.meta["warnings"] == [
        "Arguments of the client's own were left out: sessionId, action, chatInput, toolCallId, kwargs."
    ]


async def test_an_argument_of_the_tool_itself_is_kept_whatever_clients_add(talk):
    assert "temprature is not an argument" in await talk.error("generate", prompt_ls=["a"], temprature=0)
    assert "toolCallId" not in (await talk("generate", prompt_ls=["a"])).meta.get("warnings", ())


@pytest.mark.thorough
async def test_an_empty_schema_is_no_schema(talk):
    assert await talk.answers("a", schema={}) == ["echo: a"]
    assert await talk.answers("yes", schema="{}", model="", choices=[]) == ["echo: yes"]
    job = await talk("bulk_generate", prompts=["yes"], schema={}, choices=["yes", "no"], validate=True)
    assert job.structured_content["state"] == "validated"


async def test_choices_may_be_one_text_with_commas(talk, upstream):
    await talk("generate", prompt_ls=["a"], choices="good, bad; both")
    assert '["good", "bad", "both"]' in json.dumps(upstream.seen[-1].json)


async def test_wrong_choices_are_named_as_the_call_names_them(talk):
    said = await talk.error("generate", prompt_ls=["a"], choices=["same", "same"])
    assert said.startswith("choices: should be at least two")


async def test_a_folder_as_input_names_the_argument_for_folders(talk, tmp_path):
    (tmp_path / "texts").mkdir()
    said = await talk.error("bulk_generate", input_file="texts", output_file="out.csv", prompt="{{content}}")
    assert "name folders and patterns in `files`" in said


async def test_a_file_elsewhere_names_the_setting_that_allows_it(talk, tmp_path):
    said = await talk.error("bulk_generate", input_file=str(tmp_path.parent / "x.csv"), output_file="out.csv")
    assert f'`allowed_roots: ["{tmp_path.parent}"]`' in said


async def test_a_single_call_takes_any_model_of_the_endpoint(talk, upstream):
    await talk("generate", prompt_ls=["a"], model="other-1")
    assert upstream.seen[-1].json["model"] == "other-1"
