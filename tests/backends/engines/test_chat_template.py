"""Chat templates are rendered as transformers renders them."""

from promptmill.backends.engines.chat_template import ChatTemplate

# as in llava-hf/llava-1.5-7b-hf and HuggingFaceTB/SmolLM3-3B
_MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' ' }}{% endgeneration %}"
    "{% else %}{{ m.content }}:{% endif %}{% endfor %}"
)


def test_marks_of_what_a_model_is_trained_on_are_passed_over():
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    assert ChatTemplate(_MARKED, {}).render(turns, {}) == "one:two "
