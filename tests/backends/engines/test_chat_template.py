"""Chat templates are rendered as transformers renders them."""

import jinja2
import pytest

from promptmill.backends.engines.chat_template import ChatTemplate

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
