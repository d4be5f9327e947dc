"""Image models of several families with random weights, made in a test, and what transformers itself answers.

Their tokenizers have one token per ASCII character, so that answers can be compared as texts. `make(family, folder, …)`
writes one; `generated` is transformers' own answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

SIDE = 28
_PATCHES = 4
_MARKS = {
    "llava": ("<image>",),
    "llava_next": ("<image>",),
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "qwen3_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "idefics3": ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"),
    "gemma3": ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "mllama": ("<|image|>",),
    "paligemma": ("<image>",),
}
FAMILIES = tuple(_MARKS)
SHOWN = {
    "llava": "<image>",
    "llava_next": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "idefics3": "<image>",
    "gemma3": "<start_of_image>",
    "internvl": "<IMG_CONTEXT>",
    "mllama": "<|image|>",
    "paligemma": "<image>",
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 102,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_EYES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_SQUARE_EYES = _EYES | {"image_size": SIDE}


def template(family: str, *, images_first: bool = False) -> str:
    """Return a chat template; with `images_first` one that moves a turn's images before its texts, as LLaVA's does."""
    mark = f"{{{{ '{SHOWN[family]}' }}}}"
    if images_first:
        parts = (
            f"{{% for p in m.content %}}{{% if p.type == 'image' %}}{mark}{{% endif %}}{{% endfor %}}"
            "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
        )
    else:
        parts = (
            f"{{% for p in m.content %}}{{% if p.type == 'image' %}}{mark}{{% else %}}{{{{ p.text }}}}{{% endif %}}"
            "{% endfor %}"
        )
    return f"{{% for m in messages %}}{{{{ m.role }}}}: {parts}</s>{{% endfor %}}assistant: "


def make(family: str, folder: Path, chat_template: str | None) -> Path:
    """Write a model of `family` to `folder`."""
    import torch

    torch.manual_seed(0)
    tokenizer = _tokenizer(family)
    processor, config, name = _parts(family, tokenizer)
    import transformers

    model = getattr(transformers, name)(config).float().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)  # far enough apart that rounding never decides
            elif "gate" in path:
                parameter.fill_(1)  # closed as they are made, they would let nothing of an image through
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if hasattr(processor, "video_processor"):  # which is none, and cannot be saved
        processor.image_processor.save_pretrained(folder)
        (folder / "processor_config.json").write_text(
            json.dumps({"processor_class": type(processor).__name__, "image_seq_length": _PATCHES})
        )
    else:
        processor.save_pretrained(folder)
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


def _tokenizer(family: str) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(("<pad>", "<s>", "</s>", *_MARKS[family]))}
    for character in ["Ġ", *map(chr, range(33, 127))]:
        vocabulary[character] = len(vocabulary)
    if family == "llava":
        vocabulary["Ċ"] = len(vocabulary)  # a line's end
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    named = {}
    if family == "gemma3":
        named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    if family == "internvl":
        named = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=named or list(_MARKS[family]),
    )


def _parts(family: str, tokenizer: Any) -> tuple[Any, Any, str]:
    import transformers as t

    number = tokenizer.convert_tokens_to_ids
    square = {"height": SIDE, "width": SIDE}
    if family in {"llava", "llava_next"}:
        text = t.LlamaConfig(**_TEXT)
        eyes = t.CLIPVisionConfig(**_SQUARE_EYES, patch_size=14, projection_dim=32)
        more = {"image_token_index": number("<image>"), "image_token_id": number("<image>"), "vision_feature_layer": -1}
        shared = {"tokenizer": tokenizer, "patch_size": 14, "vision_feature_select_strategy": "default"}
        sizes = {"size": {"shortest_edge": SIDE}, "crop_size": square}
        if family == "llava":
            pixels = t.CLIPImageProcessorPil(**sizes)
            processor = t.LlavaProcessor(image_processor=pixels, num_additional_image_tokens=1, **shared)
            config = t.LlavaConfig(vision_config=eyes, text_config=text, image_seq_length=_PATCHES, **more)
            return processor, config, "LlavaForConditionalGeneration"
        grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
        pixels = t.LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=grid)
        processor = t.LlavaNextProcessor(image_processor=pixels, num_additional_image_tokens=1, **shared)
        config = t.LlavaNextConfig(vision_config=eyes, text_config=text, image_grid_pinpoints=grid, **more)
        return processor, config, "LlavaNextForConditionalGeneration"
    if family.startswith("qwen"):
        return _qwen(family, tokenizer)
    if family == "idefics3":
        eyes = t.Idefics3VisionConfig(**_SQUARE_EYES, patch_size=7)
        config = t.Idefics3Config(
            vision_config=eyes,
            text_config=t.LlamaConfig(**_TEXT),
            image_token_id=number("<image>"),
            scale_factor=2,
            pad_token_id=0,
        )
        pixels = t.Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
        processor = t.Idefics3Processor(image_processor=pixels, tokenizer=tokenizer, image_seq_len=_PATCHES)
        return processor, config, "Idefics3ForConditionalGeneration"
    if family == "gemma3":
        text = t.Gemma3TextConfig(**_TEXT, sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2)
        eyes = t.SiglipVisionConfig(**_SQUARE_EYES, patch_size=7)
        config = t.Gemma3Config(
            text_config=text,
            vision_config=eyes,
            mm_tokens_per_image=_PATCHES,
            tie_word_embeddings=False,
            boi_token_index=number("<start_of_image>"),
            eoi_token_index=number("<end_of_image>"),
            image_token_index=number("<image_soft_token>"),
            image_token_id=number("<image_soft_token>"),
        )
        pixels = t.Gemma3ImageProcessorPil(size=square)
        processor = t.Gemma3Processor(image_processor=pixels, tokenizer=tokenizer, image_seq_length=_PATCHES)
        return processor, config, "Gemma3ForConditionalGeneration"
    if family == "internvl":
        eyes = t.InternVLVisionConfig(**_EYES, image_size=(SIDE, SIDE), patch_size=(7, 7))
        config = t.InternVLConfig(
            vision_config=eyes,
            text_config=t.Qwen2Config(**_TEXT),
            image_token_id=number("<IMG_CONTEXT>"),
            image_seq_length=_PATCHES,
            downsample_ratio=0.5,
        )
        pixels = t.GotOcr2ImageProcessorPil(size=square, crop_to_patches=False)
        from promptmill.backends.engines.hf import vision

        processor = t.InternVLProcessor(
            image_processor=pixels, tokenizer=tokenizer, image_seq_length=_PATCHES, video_processor=vision.NoVideos()
        )
        return processor, config, "InternVLForConditionalGeneration"
    if family == "paligemma":
        eyes = t.SiglipVisionConfig(**_SQUARE_EYES, patch_size=14, projection_dim=64)
        config = t.PaliGemmaConfig(
            text_config=t.GemmaConfig(**_TEXT),
            vision_config=eyes,
            image_token_index=number("<image>"),
            image_token_id=number("<image>"),
            projection_dim=64,
            hidden_size=64,
            tie_word_embeddings=False,
        )
        pixels = t.SiglipImageProcessorPil(size=square)
        pixels.image_seq_length = _PATCHES
        processor = t.PaliGemmaProcessor(image_processor=pixels, tokenizer=tokenizer)
        return processor, config, "PaliGemmaForConditionalGeneration"
    eyes = t.models.mllama.configuration_mllama.MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        max_num_tiles=4,
        vision_output_dim=64,
        intermediate_layers_indices=[1],
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )
    text = t.models.mllama.configuration_mllama.MllamaTextConfig(**_TEXT, cross_attention_layers=[1, 3])
    config = t.MllamaConfig(vision_config=eyes, text_config=text, image_token_index=number("<|image|>"))
    pixels = t.MllamaImageProcessorPil(size=square, max_image_tiles=4)
    processor = t.MllamaProcessor(image_processor=pixels, tokenizer=tokenizer)
    return processor, config, "MllamaForConditionalGeneration"


def _qwen(family: str, tokenizer: Any) -> tuple[Any, Any, str]:
    import transformers as t

    from promptmill.backends.engines.hf import vision

    number = tokenizer.convert_tokens_to_ids
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    prefix = names[family]
    text = {**_TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
    ids = {
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
    }
    eyes: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    eyes["temporal_patch_size"] = 2
    if family == "qwen2_vl":
        eyes |= {"embed_dim": 32, "hidden_size": 64}
    else:
        eyes |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 48}
    if family == "qwen2_5_vl":
        eyes |= {"window_size": 56, "fullatt_block_indexes": [1]}
    if family == "qwen3_vl":
        eyes |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    config = getattr(t, f"{prefix}Config")(text_config=text, vision_config=eyes, **ids)
    pixels = t.Qwen2VLImageProcessorPil(patch_size=14, min_pixels=SIDE * SIDE, max_pixels=16 * SIDE * SIDE)
    vision.stand_in_for_videos()
    processor = getattr(t, f"{prefix}Processor")(
        image_processor=pixels, tokenizer=tokenizer, video_processor=vision.NoVideos()
    )
    return processor, config, f"{prefix}ForConditionalGeneration"


def generated(folder: Path, text: str, images: list[Image.Image], tokens: int) -> str:
    """Return the answer of transformers' own greedy generate to one prompt, its marks already in `text`."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from promptmill.backends.engines.hf import vision

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    if images:
        processor = vision.load_processor({"pretrained_model_name_or_path": folder})
        inputs = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
    else:
        inputs = tokenizer([text], return_tensors="pt", add_special_tokens=False)
    model.generation_config.eos_token_id = None  # a few tokens prove little
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
