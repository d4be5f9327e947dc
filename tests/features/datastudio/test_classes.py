"""The Python faces, against a real endpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from promptmill.api import BaseAPI, MPOpenAIAPI, OpenAIAPI
from promptmill.core.errors import PromptmillError
from promptmill.features.datastudio.classes import _conversation_of
from replies import answer, attempts, by_prompt, choose, late, status
from waiting import PATIENCE_S


@pytest.fixture
def api(upstream):
    return OpenAIAPI("m", key="k", base_url=upstream.url, retry=2, wait=0.01)


@pytest.mark.thorough
def test_arguments_of_the_workers_count_by_position_too(upstream):
    given = [None, 0.5, 0.9, 5, 0.1, 0.2, 1.1, upstream.url, None, 2, 0.1, (5, 5), 7, 9, False, None, 8, 2, 3, True]
    api = MPOpenAIAPI("m", *given)
    assert api.generate(["a"]) == ["echo: a"]
    sent = upstream.seen[0].json
    assert (sent["top_k"], sent["max_tokens"]) == (5, 7)
    assert sent["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.thorough
def test_calls_of_several_threads_with_workers_all_end(upstream):
    api = MPOpenAIAPI("m", api_base=upstream.url, num_workers=3, thread_num=6)
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(api.generate, [f"{at}"]) for at in range(6)]
        assert [answers.result(timeout=PATIENCE_S) for answers in asked] == [[f"echo: {at}"] for at in range(6)]


@pytest.mark.thorough
def test_one_answer_needs_no_workers(upstream, monkeypatch):
    started = []
    start = asyncio.create_subprocess_exec

    def counted(*arguments, **options):
        started.append(arguments)
        return start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", counted)
    api = MPOpenAIAPI("m", api_base=upstream.url, num_workers=2, thread_num=4)
    assert api.generate_inner("hi")[:2] == (0, "echo: hi")
    assert not started
    assert api.generate(["hi"]) == ["echo: hi"]
    assert len(started) == 1, "the second one starts once the endpoint has answered, if there is more to send"


def test_answers_come_in_order_and_a_failed_one_is_the_message(api, upstream, caplog):
    upstream.reply = by_prompt({"bad": status(400)}, answer())
    with caplog.at_level(logging.ERROR):
        assert api.generate(["a", "bad", "c"]) == ["echo: a", "Failed to obtain answer via API.", "echo: c"]
    assert "input 1: bad_request" in caplog.text


def test_sampling_goes_out_and_a_call_overrides_it(api, upstream):
    api.generate(["a"], temperature=0, logit_bias={"1": 2})
    sent = upstream.seen[0].json
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["max_tokens"]) == (0, 0.95, 20, 16384)
    assert sent["logit_bias"] == {"1": 2}
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


def test_one_answer_comes_with_its_response(api, upstream):
    assert api.generate_inner("hi") == (
        0,
        "echo: hi",
        {"finish_reason": "stop", "usage": {"prompt_tokens": 1, "completion_tokens": 2}, "reasoning": None},
    )
    upstream.reply = status(404)
    code, text, response = api.generate_inner("hi")
    assert (code, text, response["error"]["code"]) == (-1, api.fail_msg, "not_found")


def test_it_works_inside_a_running_event_loop(api):
    async def notebook():
        return api.generate(["a"])

    assert asyncio.run(notebook()) == ["echo: a"]


NOTEBOOK = """
import asyncio, sys
from promptmill.api import OpenAIAPI

async def cell():
    OpenAIAPI("m", api_base=sys.argv[1], thread_num=8).generate([str(at) for at in range(300)])

try:
    asyncio.new_event_loop().run_until_complete(cell())
except KeyboardInterrupt as interrupted:
    answers = getattr(interrupted, "answers", [])
    there = [text for text in answers if text.startswith("echo: ")]
    print("interrupted with", len(answers), len(there) > 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_an_interrupt_in_a_notebook_ends_the_call_and_brings_what_is_there(upstream):
    upstream.reply = late(0.1, answer())
    notebook = subprocess.Popen([sys.executable, "-c", NOTEBOOK, upstream.url], stdout=subprocess.PIPE, text=True)
    try:
        while len(upstream.seen) < 20:
            assert notebook.poll() is None
            time.sleep(0.01)
        notebook.send_signal(signal.SIGINT)
        assert notebook.communicate(timeout=PATIENCE_S)[0] == "interrupted with 300 True\n"
        assert len(upstream.seen) < 200
    finally:
        notebook.kill()
        notebook.communicate()


def _sent_images(upstream, at=-1):
    urls = [
        part["image_url"]["url"] for part in upstream.seen[at].json["messages"][0]["content"] if "image_url" in part
    ]
    return [(url.partition(";")[0], base64.b64decode(url.partition(",")[2])) for url in urls]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "jpeg"),
        ("L", "jpeg"),
        ("CMYK", "jpeg"),
        ("YCbCr", "jpeg"),
        ("I;16", "jpeg"),
        ("RGBA", "png"),
        ("P", "png"),
    ],
)
def test_an_image_of_pillows_is_sent(api, upstream, mode, kind):
    api.generate([[{"type": "image", "value": Image.new(mode, (3, 2))}, {"type": "text", "value": "What?"}]])
    ((head, data),) = _sent_images(upstream)
    assert head == f"data:image/{kind}"
    assert Image.open(io.BytesIO(data)).size == (3, 2)


def _file(kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(out, kind)
    return out.getvalue()


BASE64 = base64.b64encode(_file("JPEG")).decode()


@pytest.mark.parametrize("mp", [False, True], ids=["one process", "workers"])
def test_bytes_arrays_and_bare_base64_are_images(upstream, mp):
    more: dict[str, Any] = {"num_workers": 2} if mp else {}
    api = (MPOpenAIAPI if mp else OpenAIAPI)("m", api_base=upstream.url, thread_num=4, retry=1, **more)
    images = {
        "bytes": (_file(), "png"),
        "array": (np.zeros((20, 30, 3), np.uint8), "jpeg"),
        "base64 of PNG": (base64.b64encode(_file()).decode(), "png"),
        "base64 of JPEG": (BASE64, "jpeg"),
        "base64 in lines": (base64.encodebytes(_file("BMP")).decode(), "png"),
    }
    asked = [[name, {"type": "image", "value": image}] for name, (image, _) in images.items()]
    assert api.generate(asked) == [f"echo: {name}" for name in images]
    for at, seen in enumerate(upstream.seen):
        ((head, data),) = _sent_images(upstream, at)
        _, kind = images[seen.prompt]
        assert head == f"data:image/{kind}"
        assert Image.open(io.BytesIO(data)).size == (30, 20)


class _Tensor:
    """As torch has them: channels first, floats from 0 to 1, and no interface of arrays."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array


RED = np.stack([np.ones((20, 30)), np.zeros((20, 30)), np.zeros((20, 30))])


LAST = np.moveaxis(RED, 0, 2)


@pytest.mark.parametrize(
    "image",
    [
        *(_Tensor(RED), _Tensor(RED[None]), RED, LAST * 255),
        *((LAST * 255).astype(np.int64), (LAST * 65_535).astype(np.uint16)),
    ],
)
def test_tensors_and_arrays_of_any_numbers_are_images(api, upstream, image):
    api.generate([[{"type": "image", "value": image}, "What?"]])
    ((_, data),) = _sent_images(upstream)
    sent = Image.open(io.BytesIO(data))
    assert sent.size == (30, 20)
    assert all(abs(have - want) < 5 for have, want in zip(sent.tobytes()[:3], (255, 0, 0), strict=True))


def test_a_tensor_of_one_channel_is_gray(api, upstream):
    api.generate([[_Tensor(np.ones((1, 20, 30), np.uint8) * 200), "What?"]])
    ((_, data),) = _sent_images(upstream)
    assert (Image.open(io.BytesIO(data)).mode, Image.open(io.BytesIO(data)).size) == ("L", (30, 20))


def test_paths_and_open_files_are_images(api, upstream, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(_file())
    with path.open("rb") as file:
        for image in (path, file, file, io.BytesIO(_file())):
            api.generate([[{"type": "image", "value": image}, "What?"]])
            assert _sent_images(upstream) == [("data:image/png", _file())]
    api.generate([[path, "What?"]])
    assert _sent_images(upstream) == [("data:image/png", _file())]
    assert api.pre_process([{"type": "image", "value": path}])[0]["content"][0]["image_url"]["url"].startswith("data:")


def test_what_the_request_builder_of_datastudio_sends_is_understood(api, upstream):
    parts = [{"type": "text", "value": "What?"}, {"type": "image", "value": BASE64}]
    assert api.generate([[{"role": "user", "content": parts}]]) == ["echo: What?"]
    assert [head for head, _ in _sent_images(upstream)] == ["data:image/jpeg"]
    api.image_key_name = "picture"
    api.generate([[{"type": "image", "picture": BASE64}, "What?"]])
    assert [head for head, _ in _sent_images(upstream)] == ["data:image/jpeg"]


def test_an_image_that_several_inputs_share_is_encoded_once(api, upstream, monkeypatch):
    saved = []
    save = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *args, **options: (saved.append(1), save(*args, **options)))
    image = Image.new("RGB", (30, 20))
    assert len(api.generate([[f"{n}", {"type": "image", "value": image}] for n in range(20)])) == 20
    assert len(saved) == 1


@pytest.mark.parametrize("source", ["/nowhere/" + "x" * 300 + ".png", BASE64[:-4] * 40 + "!"])
def test_no_source_is_quoted_at_length(api, caplog, source):
    with caplog.at_level(logging.ERROR):
        assert api.generate([[{"type": "image", "value": source}, "What?"]]) == [api.fail_msg]
    assert "invalid_image" in caplog.text
    assert source[:81] not in caplog.text
    assert source[-81:] not in caplog.text


def test_attributes_that_are_set_count_from_the_next_call_on(api, upstream):
    api.temperature, api.max_tokens, api.model, api.thread_num = 0.1, 5, "n", 3
    api.generate(["a"])
    sent = upstream.seen[-1].json
    assert (sent["temperature"], sent["max_tokens"], sent["model"]) == (0.1, 5, "n")


def test_arguments_of_the_base_class_are_no_part_of_a_request(upstream):
    api = OpenAIAPI("m", api_base=upstream.url, image_key_name="image", openai_format=True, use_system_proxy=False)
    api.generate(["a"], fail_msg="no", return_dict=False, openai_format=True)
    assert not {"image_key_name", "openai_format", "fail_msg", "return_dict"} & upstream.seen[0].json.keys()


def test_as_many_as_thread_num_are_in_flight_from_the_first_request(upstream):
    """No request is answered before all have arrived; if fewer came, the call would wait for ever."""
    all_here = asyncio.Event()

    async def held(exchange):
        if upstream.peak == 100:
            all_here.set()
        await all_here.wait()
        await answer()(exchange)

    upstream.reply = held
    OpenAIAPI("m", api_base=upstream.url, thread_num=100).generate([str(n) for n in range(100)])
    assert upstream.peak == 100


def test_several_keys_and_ports_share_the_work(upstream):
    upstream.reply = late(0.05, answer())
    api = OpenAIAPI("m", key=["one", "two"], port=[upstream.port], thread_num=8)
    api.generate([str(n) for n in range(40)])
    keys = {seen.headers["authorization"] for seen in upstream.seen}
    assert keys == {"Bearer one", "Bearer two"}


@pytest.mark.parametrize("port", ["{}", ["{}"]])
def test_a_port_may_be_a_text(upstream, port):
    written = [str(upstream.port)] if isinstance(port, list) else str(upstream.port)
    assert OpenAIAPI("m", key="k", port=written).generate(["a"]) == ["echo: a"]
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("port", ["8000,8001", "", "http://h:1", 0, 65536, ["1", "x"]])
def test_anything_but_a_port_is_refused_before_a_key_goes_anywhere(port):
    with pytest.raises(PromptmillError, match="port"):
        OpenAIAPI("m", key="k", port=port)


@pytest.mark.parametrize("retry", [0, -1, 1000])
def test_any_number_of_attempts_sends_at_least_one_request(upstream, retry):
    api = OpenAIAPI("m", api_base=upstream.url, retry=retry, wait="0.01")
    assert api.generate(["a"]) == ["echo: a"]
    assert len(upstream.seen) == 1


def test_numbers_out_of_their_range_are_the_endpoints_to_refuse(upstream):
    odd: dict[str, Any] = {
        "presence_penalty": 3,
        "temperature": -1,
        "max_tokens": 0,
        "top_p": 0,
        "min_p": 2,
        "top_k": -2,
    }
    OpenAIAPI("m", api_base=upstream.url, **odd).generate(["a"], frequency_penalty=-5)
    assert upstream.seen[0].json.items() >= {**odd, "frequency_penalty": -5}.items()
    wrong: Any = "hot"
    with pytest.raises(PromptmillError, match="temperature"):
        OpenAIAPI("m", api_base=upstream.url, temperature=wrong)


def test_an_answer_without_an_object_is_asked_for_again(upstream):
    upstream.reply = by_prompt({"x": attempts(answer("no"), answer('{"a": 1}'))}, answer("no"))
    api = OpenAIAPI("m", api_base=upstream.url, return_dict=True, retry=3)
    assert api.generate(["x", "y"]) == [{"a": 1}, api.fail_msg]
    assert (upstream.attempts["x"], upstream.attempts["y"]) == (2, 3)


def test_any_logger_is_told(upstream):
    class Plain:
        def __init__(self):
            self.said = []

        def info(self, text):
            self.said.append(text)

    upstream.reply = status(400, "100% no {x}")
    api = OpenAIAPI("m", api_base=upstream.url, logger=Plain())
    assert api.generate(["a"]) == [api.fail_msg]
    assert "100% no {x}" in api.logger.said[0]


def test_reasoning_stays_in_the_text(api, upstream):
    upstream.reply = answer("<think>\nhm\n</think>\n\nParis")
    assert api.generate(["a"]) == ["<think>\nhm\n</think>\n\nParis"]


def test_a_dict_is_found_in_the_answer(upstream):
    upstream.reply = by_prompt({"x": answer('Sure!\n```json\n{"a": 1,}\n```')}, answer("no"))
    api = OpenAIAPI("m", api_base=upstream.url, return_dict=True)
    assert api.generate(["x", "y"]) == [{"a": 1}, api.fail_msg]


def test_workers_give_the_same_answers(upstream):
    api = MPOpenAIAPI("m", api_base=upstream.url, num_workers=2, thread_num=16)
    prompts = [f"prompt {i}" for i in range(200)]
    assert api.generate(prompts) == [f"echo: {prompt}" for prompt in prompts]
    api.shutdown()


@pytest.mark.parametrize("item", [3, None, [], [3], {"a": 1}, {"type": "video", "value": "x"}])
def test_anything_else_is_an_error_that_names_it(item):
    with pytest.raises(PromptmillError, match=r"inputs"):
        _conversation_of(item, "inputs")


@pytest.mark.parametrize("threads", [0, -1, "eight"])
def test_a_mistake_in_the_settings_shows_at_once(threads):
    with pytest.raises(PromptmillError, match="thread_num"):
        OpenAIAPI("m", api_base="http://localhost:1", thread_num=threads)


@pytest.mark.parametrize("threads", [None, "8", 8])
def test_a_number_of_threads_may_be_a_text_or_left_out(upstream, threads):
    assert OpenAIAPI("m", key="k", api_base=upstream.url, thread_num=threads).generate(["x"]) == ["echo: x"]
    own = _Own(lambda messages: (0, messages[0]["content"], {}), thread_num=threads, retry="2")
    assert own.generate(["x"]) == ["x"]


class _Person(BaseModel):
    name: str
    age: int | None = None


def test_answers_of_a_pydantic_class_are_its_instances(upstream, caplog):
    good, bad = answer('Sure: {"name": "Ada", "age": null}'), answer("No idea.")
    upstream.reply = choose(lambda seen: bad if {"role": "user", "content": "bad"} in seen.json["messages"] else good)
    api = OpenAIAPI("m", api_base=upstream.url, wait=0.01)
    assert api.generate(["good", "bad"], schema=_Person) == [_Person(name="Ada"), api.fail_msg]
    code, found, _ = api.generate_inner("good", schema=_Person.model_json_schema())
    assert (code, found) == (0, 'Sure: {"name": "Ada", "age": null}'[6:])
    assert "invalid_answer" in caplog.text


@pytest.mark.parametrize("thought", ["<think>{maybe} Bob?</think>\n", "[THINK]{maybe} Bob?[/THINK]"])
def test_an_object_is_looked_for_behind_the_thoughts(upstream, thought):
    upstream.reply = answer(thought + '{"name": "Ada"}')
    options = {"key": "k", "api_base": upstream.url, "retry": 2, "wait": 0.01}
    assert OpenAIAPI("m", return_dict=True, **options).generate(["Who?"]) == [{"name": "Ada"}]
    assert OpenAIAPI("m", **options).generate(["Who?"], schema=_Person) == [_Person(name="Ada")]
    assert len(upstream.seen) == 2


# Subclasses


class _Prepares(OpenAIAPI):
    def pre_process(self, msg):
        return [{"role": "user", "content": f"{msg}, please"}]


class _Formats(OpenAIAPI):
    def prepare_inputs(self, inputs):
        messages, text = super().prepare_inputs(inputs)
        return [{"role": "system", "content": "Be short."}, *messages], text


class _TextsOnly(OpenAIAPI):
    allowed_types: ClassVar = ["text"]


class _Smaller(OpenAIAPI):
    def encode_image_directly(self, img_item):
        return super().encode_image_directly(img_item.resize((3, 3)))


class _Sorts(OpenAIAPI):
    def process_single_message(self, message, all_kwargs):
        return super().process_single_message(message, all_kwargs).upper()


class _Inner(OpenAIAPI):
    def generate_inner(self, inputs, **kwargs):
        code, text, response = super().generate_inner(inputs, **kwargs)
        return code, f"<{text}>", response


def _made(kind, upstream, **more):
    return kind("m", key="k", api_base=upstream.url, retry=1, wait=0.01, thread_num=4, **more)


def test_a_subclass_prepares_inputs_in_its_own_way(upstream):
    assert _made(_Prepares, upstream).generate(["a"]) == ["echo: a, please"]
    _made(_Formats, upstream).generate(["a"])
    assert [turn["role"] for turn in upstream.seen[-1].json["messages"]] == ["system", "user"]
    with pytest.raises(AssertionError, match="image"):
        _made(_TextsOnly, upstream).generate([{"type": "image", "value": "a.png"}])


def test_a_subclass_encodes_images_in_its_own_way(upstream):
    image = Image.new("RGB", (30, 20), "red")
    _made(_Smaller, upstream).generate([[{"type": "image", "value": image}, {"type": "text", "value": "What?"}]])
    ((_, data),) = _sent_images(upstream)
    assert Image.open(io.BytesIO(data)).size == (3, 3)


def test_a_subclass_answers_single_messages_in_its_own_way(upstream):
    assert _made(_Sorts, upstream).generate(["a", "b"]) == ["ECHO: A", "ECHO: B"]
    assert _made(_Inner, upstream).generate(["a", "b"], temperature=0) == ["<echo: a>", "<echo: b>"]
    assert upstream.seen[-1].json["temperature"] == 0


def test_an_object_may_have_a_method_of_its_own(upstream):
    api = _made(OpenAIAPI, upstream)
    api.pre_process = lambda msg: [{"role": "user", "content": msg[::-1]}]
    assert api.generate(["abc"]) == ["echo: cba"]


# The base class


class _Own(BaseAPI):
    """A program's own client: answers by a function of the messages."""

    def __init__(self, answer, **options):
        super().__init__(**({"wait": 0, "return_dict": False} | options))
        self.answer = answer
        self.seen = []

    def generate_inner(self, inputs, **kwargs):
        self.seen.append((inputs, kwargs))
        return self.answer(inputs)


def test_both_classes_are_of_the_base_class():
    assert issubclass(OpenAIAPI, BaseAPI)
    assert issubclass(MPOpenAIAPI, BaseAPI)
    assert BaseAPI.allowed_types == ["text", "image", "image_url", "system"]
    assert BaseAPI.__abstractmethods__ == {"generate_inner"}


def test_a_programs_own_client_gets_messages_and_its_answers_come_in_order():
    own = _Own(lambda messages: (0, f"echo: {messages[0]['content']}", {}), top_k=5)
    assert own.generate(["a", {"type": "text", "value": "b"}, "c"], top_p=0.5) == ["echo: a", "echo: b", "echo: c"]
    assert own.seen[0] == ([{"role": "user", "content": "a"}], {"top_k": 5, "top_p": 0.5})
    with pytest.raises(PromptmillError, match="one input"):
        own.generate("a")


def test_failures_of_a_programs_own_client_are_tried_again(caplog):
    def fails(messages):
        raise OSError("no route")

    own = _Own(fails, retry=3)
    assert own.generate(["a"]) == [own.fail_msg]
    assert len(own.seen) == 3
    assert "OSError: no route" in caplog.text
    results = iter([(-1, "no", {}), (0, "", {}), (0, own.fail_msg, {}), (0, "yes", {})])
    assert _Own(lambda _: next(results), retry=4).generate(["a"]) == ["yes"]
    once = _Own(lambda _: (-1, "", {}), retry=0)
    assert once.generate(["a"]) == [once.fail_msg]
    assert len(once.seen) == 1


def test_return_dict_of_a_programs_own_client_wants_an_object():
    texts = iter(["no", 'Sure: {"a": 1}'])
    own = _Own(lambda _: (0, next(texts), {}), return_dict=True)
    assert own.generate(["a"]) == [{"a": 1}]
    assert _Own(lambda _: (0, {"a": 1}, {}), return_dict=True).generate(["a"]) == [{"a": 1}]


def test_an_answer_may_be_an_array():
    own = _Own(lambda _: (0, np.zeros(3), {}))
    (found,) = own.generate(["a"])
    assert found.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("a", "str"),
        ({"type": "text", "value": "a"}, "dict"),
        (["a", "b"], "liststr"),
        ([{"role": "user", "content": "a"}], "listdict"),
        (["a", {"type": "text", "value": "b"}], "unknown"),
        ([], "unknown"),
        (7, "unknown"),
    ],
)
def test_inputs_have_a_kind_and_unknown_ones_are_refused(api, given, kind):
    assert api.check_content(given) == kind
    if kind == "unknown":
        with pytest.raises(AssertionError, match="unknown"):
            api.pre_process(given)
    else:
        assert api.pre_process(given)[0]["role"] == "user"


def test_parts_of_another_type_are_refused(api):
    with pytest.raises(AssertionError, match="video"):
        api.pre_process([{"type": "video", "value": "x"}])

    class TextsOnly(_Own):
        allowed_types: ClassVar = ["text"]

    texts_only = TextsOnly(lambda _: (0, "a", {}))
    for given in ({"type": "image", "value": "a.png"}, "https://h/a.png"):
        with pytest.raises(AssertionError, match="image"):
            texts_only.pre_process(given)


def test_inputs_become_parts_and_parts_become_messages(api, tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (2, 2), "red").save(file)
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    given = [
        {"type": "system", "value": "Be short."},
        {"type": "text", "value": "Which?"},
        {"type": "image", "image": str(file)},
    ]
    parts = api.preproc_content(given)
    assert parts == [*given[:2], {"type": "image", "value": str(file)}]
    assert api.preproc_content(["Which?", str(file)]) == parts[1:]
    asked = {
        "role": "user",
        "content": [{"type": "text", "text": "Which?"}, {"type": "image_url", "image_url": {"url": url}}],
    }
    messages, text = api.prepare_inputs(parts)
    assert messages == [{"role": "system", "content": "Be short."}, asked] == api.pre_process(given)
    assert text == "Be short.\nWhich?"
    assert api.prepare_inputs(messages) == (messages, text)
    assert api.preproc_content(messages) == messages
    api.openai_format = False
    assert api.prepare_inputs(parts) == (parts, text)


def test_an_image_in_memory_is_encoded_and_anything_else_stays(api):
    image = Image.new("RGB", (2, 2), "red")
    encoded = api.encode_image_directly(image)
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (2, 2)
    assert api.encode_image_directly("a.png") == "a.png"
    (part,) = api.preproc_content({"type": "image", "value": image})
    assert part["value"] is image


@pytest.mark.parametrize("kind", [OpenAIAPI, MPOpenAIAPI])
def test_an_address_has_one_of_its_two_names(kind):
    assert kind("m", base_url="http://localhost:1/v1").api_base == "http://localhost:1/v1"
    with pytest.raises(PromptmillError, match="two names of one argument"):
        kind("m", base_url="http://localhost:1/v1", api_base="http://localhost:2/v1")


def test_a_key_comes_from_the_variable_that_datastudio_reads(upstream, monkeypatch):
    monkeypatch.setenv("LLM_API_KEY", "of-another-program")
    monkeypatch.setenv("OPENAI_API_KEY", "of-datastudio")
    OpenAIAPI("m", api_base=upstream.url).generate(["x"])
    assert upstream.seen[0].headers["authorization"] == "Bearer of-datastudio"


def test_any_number_of_threads_is_accepted(upstream):
    assert OpenAIAPI("m", key="k", api_base=upstream.url, thread_num=200_000).generate(["x"]) == ["echo: x"]


def test_an_empty_answer_is_a_failed_one(upstream):
    upstream.reply = answer("", finish_reason="stop")
    api = OpenAIAPI("m", key="k", api_base=upstream.url, retry=1)
    assert api.generate(["x"]) == [api.fail_msg]
    assert api.generate_inner("x")[:2] == (-1, api.fail_msg)
