"""vLLM on small models made here: no chat template, thinking templates, LoRA adapters, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptmill.backends.engines.chat_template import NO_TEMPLATE

pytestmark = pytest.mark.engine
PROMPTS = ["one", "two words", "three", "x"]
TARGETS = {"q_proj": (64, 128), "v_proj": (64, 64)}  # module → its inputs and outputs in the small model


@pytest.fixture(scope="session")
def adapter(tmp_path_factory) -> Path:
    """A LoRA adapter of rank 4 for the small model, strong enough to change its words."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapter")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    settings |= {"target_modules": sorted(TARGETS), "base_model_name_or_path": "small"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.manual_seed(1)
    weights = {}
    for layer in range(4):
        for name, (inputs, outputs) in TARGETS.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{place}.lora_A.weight"] = torch.randn(4, inputs) * 0.3
            weights[f"{place}.lora_B.weight"] = torch.randn(outputs, 4) * 0.3
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def adapted(start, small, adapter):
    """An engine with the adapter, which takes nothing that it cannot honour."""
    return start(small, dtype="float32", lora_modules={"changed": str(adapter)}, unsupported="error")


def _greedy(small: Path, adapter: Path | None, prompt: str, tokens: int) -> str:
    """Return transformers' answer, with the adapter's product added to the weights."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32).eval()
    if adapter is not None:
        weights = load_file(adapter / "adapter_model.safetensors")
        for layer in range(4):
            for name in TARGETS:
                place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
                product = weights[f"{place}.lora_B.weight"] @ weights[f"{place}.lora_A.weight"]
                getattr(model.model.layers[layer].self_attn, name).weight.data += 8 / 4 * product
    tokenizer = AutoTokenizer.from_pretrained(small)
    inputs = tokenizer([prompt], return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
    text = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character at the end, which vLLM keeps to itself


def test_without_a_template_prompts_go_in_as_they_are(desk, adapted, small):
    texts = desk.texts(adapted, PROMPTS, {"ignore_eos": True}, max_tokens=6)
    assert texts == [_greedy(small, None, prompt, 6) for prompt in PROMPTS]
    assert list(desk.last_call.warnings) == [NO_TEMPLATE]


def test_a_lora_adapter_answers_as_if_its_weights_were_added(desk, adapted, small, adapter):
    plain = desk.texts(adapted, PROMPTS, {"ignore_eos": True}, max_tokens=6)
    changed = desk.texts(adapted, PROMPTS, {"ignore_eos": True, "lora": "changed"}, max_tokens=6)
    assert changed != plain
    assert changed == [_greedy(small, adapter, prompt, 6) for prompt in PROMPTS]


def test_an_adapter_that_is_not_loaded_is_named(desk, adapted):
    (outcome,) = desk.ask(adapted, ["x"], {"lora": "other"}, max_tokens=2)
    assert outcome.error.code == "invalid_input"
    assert "loaded are changed" in outcome.error.message


def test_unsupported_parameters_can_be_errors(desk, adapted):
    outcomes = desk.ask(adapted, ["x"], {"nonsense": 1}, max_tokens=2)
    assert outcomes[0].error.code == "unsupported"
    assert "nonsense" in outcomes[0].error.message
    (outcome,) = desk.ask(adapted, ["x"], max_tokens=2, enable_thinking=False)
    assert outcome.text is not None


THINKING = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if enable_thinking is defined and "
    "enable_thinking %}<think>{% endif %}{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}"
)


def test_switches_of_the_template_are_set(desk, start, tiny):
    host = start(tiny(template=THINKING, head_dim=32), dtype="float32", max_num_seqs=4)
    (off,) = desk.ask(host, ["abc"], {"ignore_eos": True}, max_tokens=6)
    (on,) = desk.ask(host, ["abc"], {"ignore_eos": True}, max_tokens=6, enable_thinking=True)
    (also,) = desk.ask(
        host, ["abc"], {"ignore_eos": True, "chat_template_kwargs": {"enable_thinking": True}}, max_tokens=6
    )
    assert off.usage.prompt_tokens == 3
    assert on.usage.prompt_tokens == 3 + len("<think>")
    assert (on.text, off.reasoning) == ("", None)  # the thought that the prompt opened never ended
    assert on.reasoning
    assert also.reasoning == on.reasoning
    (effort,) = desk.ask(host, ["abc"], max_tokens=2, reasoning_effort="low")
    assert effort.usage.prompt_tokens == 6
    assert desk.last_call.warnings == {}
