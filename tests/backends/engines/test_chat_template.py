"""Chat templates are rendered as transformers renders them."""

from typing import Any

import jinja2
import pytest

from promptmill.backends.engines.chat_template import ChatTemplate, prompt_text, without_system
from promptmill.core.errors import PromptmillError

# as in llava-hf/llava-1.5-7b-hf and HuggingFaceTB/SmolLM3-3B
_MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' ' }}{% endgeneration %}"
    "{% else %}{{ m.content }}:{% endif %}{% endfor %}"
)


def test_marks_of_what_a_model_is_trained_on_are_passed_over():
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert ChatTemplate(_MARKED, {}).render(turns, {}) == "one:two "


@pytest.mark.parametrize(("text", "end"), [("m.content", "The answer: "), ("m.content | trim", "The answer:")])
def test_the_last_turn_is_continued(text, end):
    template = ChatTemplate(f"{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ {text} }}}}</s>{{% endfor %}}", {})
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "The answer: "}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert template.render(turns, options) == f"<user>one</s><assistant>{end}"
    with pytest.raises(jinja2.TemplateError, match="add_generation_prompt"):
        template.render(turns, {**options, "add_generation_prompt": True})


# as in google/gemma-2-2b-it
_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def test_a_template_without_a_system_turn_gets_its_words_in_the_user_turn():
    render = ChatTemplate(_NO_SYSTEM, {}).render
    turns = [{"role": "system", "content": "The labels:\n- a"}, {"role": "user", "content": "Which?"}]
    found = prompt_text(turns, _NO_SYSTEM, lambda turns: render(turns, {}), [])
    assert found == ("<user>The labels:\n- a\n\nWhich?", False)
    with pytest.raises(PromptmillError, match="System role not supported"):
        prompt_text(turns[:1], _NO_SYSTEM, lambda turns: render(turns, {}), [])


def test_a_system_turn_of_parts_keeps_them_in_the_user_turn():
    text: dict[str, Any] = {"type": "text", "text": "Be brief."}
    image: dict[str, Any] = {"type": "image", "index": 0}
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": [text]},
        {"role": "user", "content": [image]},
        {"role": "assistant"},
    ]
    assert without_system(turns) == [
        {"role": "user", "content": [text, {"type": "text", "text": "\n\n"}, image]},
        {"role": "assistant"},
    ]
