"""Kinds of text models beyond the usual: each row's greedy answer is transformers' own, or the model is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

import hf_parts as hf
from promptmill.backends.engines.growing_answer import AnswerEnd, AnswerTexts, GrowingForm
from promptmill.backends.engines.model_loading import Location
from promptmill.core.errors import PromptmillError

pytestmark = [pytest.mark.engine, pytest.mark.thorough, hf.NEEDED]

TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
LATENT = {"num_key_value_heads": 4, "head_dim": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
TURNS = ["sliding_attention", "full_attention"] * 2
STATES = ["linear_attention", "full_attention"] * 2
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Next": {**LINEAR, "layer_types": STATES, "num_experts": 4, "num_experts_per_tok": 2},
    "Lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "FalconH1": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_d_ssm": 128},
    "GptOss": {"layer_types": TURNS, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Gemma3n": {"layer_types": TURNS, "sliding_window": 16, "num_kv_shared_layers": 2, "laurel_rank": 8},
    "DeepseekV3": {**LATENT, **EXPERTS, "q_lora_rank": 16, "v_head_dim": 16, "first_k_dense_replace": 1},
    "DeepseekV4": {**EXPERTS, "num_key_value_heads": 1, "q_lora_rank": 16, "sliding_window": 16},
    "HyperCLOVAXVisionV2": {},
}
PROMPTS = [[5 + (7 * i * j + 3 * i) % 290 for j in range(n)] for i, n in enumerate((3, 11, 40, 12, 1, 60, 23, 22, 41))]
LENGTHS = (9, 24, 14, 20, 30, 12, 18, 6, 16)


class _Enough(BaseException):
    """Everything is answered."""


class _Channel:
    """Keeps the sent messages until it has a given number of outcomes."""

    def __init__(self, outcomes: int) -> None:
        self.sent: list[dict] = []
        self._outcomes = outcomes

    def send(self, message: dict) -> None:
        self.sent.append(message)
        if len(self.sent) == self._outcomes:
            raise _Enough


@pytest.fixture
def save(tiny, tmp_path):
    """Write a model with far-apart random weights and the small tokenizer; return its folder."""

    def write(model) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny(), folder)
        (folder / "model.safetensors").unlink()
        hf.torch.manual_seed(0)
        with hf.torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "conv" not in name and "A_log" not in name:
                    parameter.normal_(0, 0.2)
        model.float().eval().save_pretrained(folder)
        return folder

    return write


def _load(folder: Path):
    options: hf.HFOptions = {
        "model_name_or_path": str(folder),
        "gguf_file": None,
        "trust_remote_code": False,
        "gpu_ids": None,
        "batch_size": None,
        "dtype": "float32",
        "device": "cpu",
        "attn_implementation": None,
        "unsupported": "warn",
    }
    return hf.load_model(Location(str(folder)), options, lambda text: None)


def _answers(model, prompts: list[list[int]], lengths: tuple[int, ...], batch_size: int = 4) -> list[list[int]]:
    rows = [
        hf.RunningSequence(
            run=1,
            number=n,
            prompt=prompt,
            ending=AnswerEnd(lengths[n]),
            choice=hf.SamplerState(),
            form=GrowingForm(AnswerTexts(model.tokenizer)),
        )
        for n, prompt in enumerate(prompts)
    ]
    schedule, channel = hf.Schedule(model.batching.border), cast("Any", _Channel(len(rows)))
    for row in rows:
        schedule.add(row)
    loop = (
        hf.Decoder(model, schedule, channel, hf.Capacity(batch_size), chunk=32)
        if model.batching.joins
        else hf.GenerateLoop(model, schedule, channel, batch_size, tokens=128)
    )
    with pytest.raises(_Enough):
        loop.run()
    assert [message["error"] for message in channel.sent if "error" in message] == []
    return [row.tokens for row in rows]


def _generated(network, prompt: list[int], tokens: int, **more) -> list[int]:
    network.generation_config.eos_token_id = None
    ids = hf.torch.tensor([prompt])
    with hf.torch.inference_mode():
        made = network.generate(
            input_ids=ids, attention_mask=hf.torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, **more
        )
    return made[0, len(prompt) :].tolist()


def _made(family: str):
    import transformers as t

    if family == "HyperCLOVAXVisionV2":
        eyes = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48, "depth": 1, "num_heads": 2}
        config = t.HyperCLOVAXVisionV2Config(text_config=t.HyperCLOVAXConfig(**TEXT), vision_config=eyes)
        return t.HyperCLOVAXVisionV2ForConditionalGeneration(config)
    kind = f"{family}Text" if family == "Gemma3n" else family
    config = getattr(t, f"{kind}Config")(**{**TEXT, **FAMILIES[family]})
    return getattr(t, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_answer_in_company_as_transformers_does_alone(save, family):
    model = _load(save(_made(family)))
    expected = [_generated(model.network, prompt, LENGTHS[n]) for n, prompt in enumerate(PROMPTS)]
    assert _answers(model, PROMPTS, LENGTHS) == expected
    assert len({tuple(tokens[:4]) for tokens in expected}) > 5


@pytest.mark.parametrize("window", [None, 262])
def test_a_model_that_turns_long_texts_by_other_angles_does_so_row_by_row(save, window):
    """As Phi-3 and Phi-4-mini do behind 4,096 tokens. What is right then is what is computed without a cache."""
    import transformers as t

    angles = {"short_factor": [1 + n / 20 for n in range(8)], "long_factor": [1.5 + n for n in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **angles}
    more = {"original_max_position_embeddings": 32, "rope_parameters": rope, "sliding_window": window}
    sizes = {name: value for name, value in TEXT.items() if name != "head_dim"}
    model = _load(save(t.Phi3ForCausalLM(t.Phi3Config(**sizes, **more))))
    lengths = tuple(
        35 - len(prompt) if len(prompt) < 12 else tokens for prompt, tokens in zip(PROMPTS, LENGTHS, strict=True)
    )
    prompts = [*PROMPTS, PROMPTS[5][:32], PROMPTS[5][:33], PROMPTS[5][:31]]
    lengths = (*lengths, 5, 5, 5)
    expected = [_generated(model.network, prompt, lengths[n], use_cache=False) for n, prompt in enumerate(prompts)]
    assert _answers(model, prompts, lengths) == expected


def _refusal(folder: Path) -> str:
    with pytest.raises(PromptmillError) as caught:
        _load(folder)
    assert caught.value.code == "engine_load_failed"
    assert caught.value.hint
    return caught.value.message


def test_a_model_that_turns_one_text_into_another_is_refused_not_loaded_by_half(save):
    import transformers as t

    config = t.BartConfig(vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1, max_position_embeddings=64)
    assert "of type bart" in _refusal(save(t.BartForConditionalGeneration(config)))


@pytest.mark.parametrize("kind", ["Bert", "RoFormer", "Electra"])
def test_a_model_that_fills_gaps_is_refused_not_taken_for_a_writer(save, kind):
    import transformers as t

    sizes = {name: TEXT[name] for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")}
    config = getattr(t, f"{kind}Config")(**sizes, num_hidden_layers=1, embedding_size=64)
    assert "does not generate text" in _refusal(save(getattr(t, f"{kind}ForMaskedLM")(config)))


def test_a_model_that_can_be_given_nothing_computed_before_is_refused(save):
    import transformers as t

    config = t.OpenAIGPTConfig(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    assert "of type openai-gpt" in _refusal(save(t.OpenAIGPTLMHeadModel(config)))


def test_a_model_that_keeps_its_states_in_itself_is_refused(tiny, tmp_path):
    folder = tmp_path / "stateful"
    shutil.copytree(tiny(), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "recurrent_gemma"}))
    assert "of type recurrent_gemma" in _refusal(folder)
