"""Arguments as UltraRAG's server reads them; each case was compared with that server itself (`scripts/ultrarag`)."""

import pytest

from promptmill.core.errors import PromptmillError
from promptmill.features.ultrarag.parameters import as_ultrarag
from promptmill.features.ultrarag.pipeline_server import _image_arguments, _prompt_arguments, _turn_arguments


@pytest.mark.parametrize(
    "prompt",
    [
        " Who? \n",
        {"content": "Who?"},
        {"content": {"text": "Who?"}},
        {"role": "assistant", "content": {"type": "text", "text": " Who?"}},
        {"text": "Who?", "id": 7},
    ],
)
def test_a_prompt_is_the_text_of_a_users_turn_without_white_space_around_it(prompt):
    found = _prompt_arguments({"prompt_ls": [prompt], "system_prompt": " Be brief. "})
    assert found == {"prompt_ls": ["Who?"], "system_prompt": "Be brief."}


_NO_PROMPTS = [[{"content": None}], [{"text": None}], [{"content": {"text": None}}], [{"text": ["x"]}]]


@pytest.mark.parametrize("prompts", [[{"id": 7}], [7], [None], [{"content": ["x"]}], 7, *_NO_PROMPTS])
def test_a_prompt_of_another_shape_is_an_error(prompts):
    with pytest.raises(PromptmillError, match="prompt_ls"):
        _prompt_arguments({"prompt_ls": prompts})


def _parts(**arguments):
    found, told = _image_arguments({"system_prompt": "", **arguments})
    assert found["multimodal_path"] == [[] for _ in found["prompt_ls"]]
    shown = [
        [part["text"] if part["type"] == "text" else (part["image_url"]["url"],) for part in message["content"]]
        for message in found["prompt_ls"]
    ]
    return shown, told


def test_images_go_before_the_text_and_empty_names_are_passed_over():
    assert _parts(prompt_ls=["Which? "], multimodal_path=[["a.png", "", " b.png "]]) == (
        [[("a.png",), ("b.png",), "Which?"]],
        [],
    )
    assert _parts(prompt_ls=["Which?"], multimodal_path=[[""]]) == ([["Which?"]], [])


@pytest.mark.parametrize(("lists", "said"), [([["a"]], "1 lists for 2"), ([["a"], ["b"], ["c"]], "3 lists for 2")])
def test_too_few_lists_are_filled_up_and_too_many_left_out(lists, said):
    shown, (told,) = _parts(prompt_ls=["1", "2"], multimodal_path=lists)
    assert shown == [[("a",), "1"], [*([("b",)] if len(lists) > 1 else []), "2"]]
    assert said in told


def test_images_go_to_their_tags_and_blanks_between_them_are_no_text():
    found = _parts(prompt_ls=["See <i> <i> now"], multimodal_path=[["a", "b"]], image_tag=" <i> ")
    assert found == ([["See ", ("a",), ("b",), " now"]], [])


def test_other_than_as_many_tags_as_images_is_an_error():
    with pytest.raises(PromptmillError, match=r"prompt_ls\[0\] contains the image tag 0 time"):
        _image_arguments({"prompt_ls": ["See"], "multimodal_path": [["a"]], "image_tag": "<i>"})


def test_turns_of_unknown_roles_and_empty_ones_are_passed_over():
    turns = [{"role": "robot", "content": "x"}, {"role": "assistant", "content": ""}, {"content": " Who? ", "id": 7}]
    found, notes = _turn_arguments({"messages": turns, "system_prompt": " Be brief. "})
    assert found is not None
    assert found["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Who? "}]
    assert found["system_prompt"] == ""
    assert notes == ["messages[0] has the role robot; it was left out.", "messages[1] is empty; it was left out."]


_QUESTION = {"role": "user", "content": "Who?"}


@pytest.mark.parametrize(
    "turn",
    [
        None,
        "Who?",
        {"role": "user", "content": None},
        {"role": "system", "content": None},
        {"role": "robot", "content": None},
        {"content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": None},
        {"role": None, "content": "Who?"},
        {"role": ["user"], "content": "Who?"},
        {"role": "user", "content": []},
        {"role": "user", "content": {}},
        {"role": "user", "content": [None]},
        {"role": "user", "content": [{"type": "text", "text": None}]},
    ],
)
def test_a_turn_with_null_or_of_another_form_is_refused_with_its_index(turn):
    with pytest.raises(PromptmillError, match=r"messages\[1\]"):
        _turn_arguments({"messages": [_QUESTION, turn, _QUESTION], "system_prompt": "Be brief."})


def test_tool_calls_without_a_text_and_their_results_are_turns():
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [
        _QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "Ada"},
    ]
    assert _turn_arguments({"messages": turns}) == ({"messages": turns, "system_prompt": ""}, [])


@pytest.mark.parametrize(("content", "sent"), [(7, "7"), (0, "0"), ({"type": "text", "text": "a"}, ...)])
def test_a_number_is_its_text_and_an_object_stays_one(content, sent):
    found, notes = _turn_arguments({"messages": [{"role": "user", "content": content}]})
    assert found is not None
    assert (found["messages"][0]["content"], notes) == (content if sent is ... else sent, [])


@pytest.mark.parametrize("turns", [[], [{"role": "system", "content": "x"}], [{"role": "robot", "content": "x"}]])
def test_without_a_turn_to_answer_there_is_nothing_to_answer(turns):
    assert _turn_arguments({"messages": turns})[0] is None


def test_zero_attempts_and_places_count_as_one():
    found, told = as_ultrarag({"backend_configs": {"openai": {"retries": 0, "concurrency": "0", "base_delay": None}}})
    assert found["backend_configs"]["openai"] == {"retries": 3, "concurrency": 1}
    assert len(told) == 2


def test_each_of_the_retries_is_three_attempts_as_in_the_openai_package():
    def retries(given):
        return as_ultrarag({"backend_configs": {"openai": {"retries": given}}})[0]["backend_configs"]["openai"][
            "retries"
        ]

    assert [retries(given) for given in (1, "2", 50, 500, "many")] == [3, 6, 100, 500, "many"]


@pytest.mark.parametrize("address", [None, "", "  ", []])
def test_no_address_means_openais_own_with_a_note(monkeypatch, address):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def found():
        return as_ultrarag(
            {"backend": "openai", "backend_configs": {"openai": {"model_name": "m", "base_url": address}}}
        )

    values, (note,) = found()
    assert values["backend_configs"]["openai"]["base_url"] == "https://api.openai.com/v1" in note
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    values, (note,) = found()
    assert values["backend_configs"]["openai"]["base_url"] == "http://localhost:8000/v1"
    for other in ({"backend": "vllm"}, {}):
        values, notes = as_ultrarag({**other, "backend_configs": {"openai": {"model_name": "m"}}})
        assert (values["backend_configs"]["openai"], notes) == ({"model_name": "m"}, [])


@pytest.mark.parametrize(
    ("backend", "provider"),
    [("gemini", "google"), ("claude", "anthropic"), ("zai", "glm"), ("qwen", "dashscope"), ("minimax", "minimax")],
)
def test_a_backend_with_the_name_of_a_provider_is_that_provider_and_no_other(backend, provider):
    blocks = {backend: {"model_name": "m"}, "openai": {"model_name": "x", "base_url": "http://other.example/v1"}}
    found, _ = as_ultrarag({"backend": backend, "backend_configs": blocks})
    assert found["backend"] == "openai"
    assert found["backend_configs"] == {"openai": {"model_name": "m", "provider": provider}}
    found, _ = as_ultrarag({"backend": backend, "backend_configs": {"openai": blocks["openai"]}})
    assert found["backend_configs"] == {"openai": {"provider": provider}}


@pytest.mark.parametrize("backend", ["vllm", "hf", "auto", "OpenAI", "nowhere", None])
def test_any_other_backend_keeps_its_blocks(backend):
    values = {"backend": backend, "backend_configs": {"vllm": {"dtype": "auto"}}}
    assert as_ultrarag(values) == (values, [])


def test_a_litellm_block_is_read_as_one_of_openai():
    block = {"model_name": "openai/m", "retries": 0}
    found, notes = as_ultrarag({"backend": "litellm", "backend_configs": {"litellm": block}})
    assert found["backend_configs"]["openai"]["retries"] == 3
    assert len(notes) == 1
