"""A vision language model of 2.5 MB, trained here in about 60 seconds: it repeats the prompt and names its images.

`here <red image> there <blue image>` → `here red there blue`: which image came where is plain in every answer. It knows
the words of `WORDS` and images of one colour of `COLOURS`, up to four different ones of each in a prompt, with a line's
end behind an image or none (its own tokenizer leaves it out, OpenVINO puts it there), and may be told anything by a
system turn. Made once and kept in promptmill's cache folder under a hash of this file.
"""

from __future__ import annotations

import hashlib
import math
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
from PIL import Image

from promptmill.system.state import cache_folder

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 180, 40),
    "blue": (30, 40, 220),
    "yellow": (240, 220, 20),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "purple": (130, 20, 160),
    "orange": (250, 140, 10),
}
WORDS = ("here", "there", "left", "right", "above", "below", "one", "two")
MOST_IMAGES = MOST_WORDS = 4
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
_VOCABULARY = {word: number for number, word in enumerate((*_SPECIAL, *COLOURS, *WORDS, "\n"))}
_PAD, _END, _IMAGE = _VOCABULARY["<pad>"], _VOCABULARY["</s>"], _VOCABULARY["<image>"]
_PATCHES = 4  # tokens of an image
_SIDE = 28  # pixels
_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }} {% endif %}{% endfor %}"
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_STEPS, _BATCH, _RATE = 500, 32, 2e-3
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def tiny_vlm() -> Path:
    """Return the folder of the trained model; raises when it did not learn to answer every check exactly."""
    import transformers

    recipe = hashlib.sha256(Path(__file__).read_bytes() + transformers.__version__.encode()).hexdigest()[:16]
    folder = cache_folder() / f"tiny-vlm-{recipe}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    wrong = ""
    with filelock.FileLock(f"{folder}.lock"):  # one process of a run trains it, the others wait
        for seed in () if folder.is_dir() else (2, 0, 1):  # 0 and 1 fail with torch 2.13
            made = Path(tempfile.mkdtemp(dir=folder.parent, prefix="tiny-vlm-"))
            try:
                _train(made, seed)
                wrong = _mistakes(made)
                if not wrong:
                    made.rename(folder)
                    break
            finally:
                shutil.rmtree(made, ignore_errors=True)
    assert folder.is_dir(), f"the small image model did not learn its task: {wrong}"
    return folder


def picture(colour: str, side: int = 32) -> Image.Image:
    """Return an image of one colour that the model can name."""
    return Image.new("RGB", (side, side), COLOURS[colour])


def _item(chance: random.Random) -> list[str]:
    """Return a prompt as words and colours; a colour stands for its image."""
    words = chance.sample(WORDS, chance.randint(0, MOST_WORDS))
    colours = chance.sample(list(COLOURS), chance.randint(0 if words else 1, MOST_IMAGES))
    items = [*words, *colours]
    chance.shuffle(items)
    return items


def _train(folder: Path, seed: int) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more gain little on layers this small, and lose much on a busy machine
    try:
        model = _trained(seed)
    finally:
        torch.set_num_threads(threads)
    model.generation_config.eos_token_id = _END
    model.generation_config.pad_token_id = _PAD
    model.save_pretrained(folder)
    _processor().save_pretrained(folder)


def _trained(seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    chance = random.Random(seed)
    model = _new_model().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 30, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / _STEPS)))
    )
    for _ in range(_STEPS):
        loss = model(**_examples(chance)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def _examples(chance: random.Random) -> dict[str, Any]:
    """Return a batch for training, images made as the processor would, with a little noise in their colours."""
    import torch

    mean, deviation = torch.tensor(_MEAN), torch.tensor(_DEVIATION)
    rows, labels, pixels = [], [], []
    for _ in range(_BATCH):
        items = _item(chance)
        prompt = []
        if chance.random() < 0.3:
            prompt += [_VOCABULARY["<|system|>"], *_told(chance), _VOCABULARY["<|end|>"]]
        prompt.append(_VOCABULARY["<|user|>"])
        for item in items:
            if item in COLOURS:
                prompt += [_IMAGE] * _PATCHES + [_VOCABULARY["\n"]] * chance.randint(0, 1)
                colour = torch.tensor(COLOURS[item]) / 255 + torch.randn(3) * 0.02
                pixels.append(((colour - mean) / deviation).reshape(3, 1, 1).expand(3, _SIDE, _SIDE))
            else:
                prompt.append(_VOCABULARY[item])
        prompt += [_VOCABULARY["<|end|>"], _VOCABULARY["<|assistant|>"]]
        answer = [*(_VOCABULARY[item] for item in items), _END]
        rows.append(prompt + answer)
        labels.append([-100] * len(prompt) + answer)
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[_PAD] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "labels": torch.tensor([[-100] * (longest - len(row)) + row for row in labels]),
        "pixel_values": torch.stack(pixels),
    }


def _told(chance: random.Random) -> list[int]:
    return [_VOCABULARY[chance.choice((*WORDS, "<unk>"))] for _ in range(chance.randint(1, 4))]


def _new_model() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    eyes = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=_SIDE,
        patch_size=14,
        projection_dim=64,
    )
    words = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,  # the smallest that vLLM takes on a CPU
        vocab_size=64,
        max_position_embeddings=512,
        pad_token_id=_PAD,
        bos_token_id=_VOCABULARY["<s>"],
        eos_token_id=_END,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=eyes,
            text_config=words,
            image_token_index=_IMAGE,
            image_token_id=_IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=_PATCHES,
        )
    ).float()


def _processor() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(_VOCABULARY, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[word for word in _SPECIAL if word not in {"<pad>", "<unk>", "<s>", "</s>"}],
        padding_side="left",
    )
    side = {"height": _SIDE, "width": _SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )


def _mistakes(folder: Path) -> str:
    """Return what the saved model gets wrong of 96 new prompts, in a few words; nothing when all is right."""
    chance = random.Random(1_000)
    wrong = []
    for prompts in _in_eights([_item(chance) for _ in range(96)]):
        for items, said in zip(prompts, answers(folder, prompts), strict=True):
            if said != " ".join(items):
                wrong.append(f"{' '.join(items)} -> {said}")
    return f"{len(wrong)} of 96, such as {wrong[0]}" if wrong else ""


def _in_eights(prompts: list[list[str]]) -> Iterator[list[list[str]]]:
    for first in range(0, len(prompts), 8):
        yield prompts[first : first + 8]


def answers(folder: Path, prompts: Sequence[Sequence[str]]) -> list[str]:
    """Return transformers' own answers to prompts of words and colours, computed together."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    turns = [[{"role": "user", "content": [_part(item) for item in items]}] for items in prompts]
    inputs = processor.apply_chat_template(
        turns,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    with torch.inference_mode():
        written = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    fresh = written[:, inputs["input_ids"].shape[1] :]
    texts: list[str] = processor.batch_decode(fresh, skip_special_tokens=True)
    return texts


def _part(item: str) -> dict[str, Any]:
    return {"type": "image", "image": picture(item)} if item in COLOURS else {"type": "text", "text": item}
