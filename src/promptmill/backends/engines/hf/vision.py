"""Prompts with images: the layout of turns for the chat template, and the conversion to tokens and pixels."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoProcessor, processing_utils

from promptmill.backends.engines.submission import mark_in_text, misplaced_images
from promptmill.core.errors import Code, PromptmillError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

_BEFORE, _AFTER = "promptmillbefore", "promptmillafter"  # words that occur in no template


class NoVideos(dict[str, Any]):
    """Replaces the video processor, which transformers cannot create without torchvision. Videos are never read.

    The class is a dict because transformers prints processors as JSON.
    """

    model_input_names: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoVideos:
        """Return an instance; the arguments are ignored."""
        return cls()


def stand_in_for_videos() -> None:
    """Allow this process to create processors with video support although torchvision is missing."""
    if importlib.util.find_spec("torchvision") is None:
        mapping = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES
        mapping["video_processor"] = (NoVideos.__module__, NoVideos.__name__)
        setattr(
            processing_utils.transformers_module,
            processing_utils.MODALITY_TO_BASE_CLASS_MAPPING["video_processor"],
            NoVideos,
        )


def load_processor(source: dict[str, Any]) -> Any:
    """Return the processor of an image model, which contains the model's tokenizer."""
    stand_in_for_videos()
    return AutoProcessor.from_pretrained(**source)


@dataclass(slots=True)
class ImageInputs:
    """The images of one prompt, as inputs of the model."""

    whole: dict[str, Any]
    """Pixels, sizes and other inputs from the processor."""
    marks: dict[str, Any]
    """Tensors of shape `(1, tokens)`, by name. Their numbers distinguish tokens of the text from those of images."""

    def inputs(self, tokens: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Return all inputs for a sequence of `tokens`: the prompt and, after a pause, the text generated so far."""
        given = {name: _to_device(value, device, dtype) for name, value in self.whole.items()}
        for name, marks in self.marks.items():
            longer = marks.new_zeros((*marks.shape[:-1], tokens))
            longer[..., : marks.shape[-1]] = marks
            given[name] = longer.to(device)
        return given


def _to_device(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_to_device(item, device, dtype) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


class Vision:
    """Encodes prompts with images. Only one thread may use it at a time."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.mark: str | None = _mark(processor)
        """The mark of an image in a text; None if the processor does not define one."""

    def encode(self, text: str, images: list[Image], *, special: bool) -> tuple[list[int], ImageInputs]:
        """Return the token ids of `text`, and its image inputs. Each mark becomes as many tokens as its image needs.

        Raises `PromptmillError` (`invalid_input`, `invalid_image`).
        """
        self._check_marks(text, len(images))
        try:
            made = self.processor(
                text=[text], images=images, add_special_tokens=special, return_tensors="pt", padding=False
            )
        except Exception as error:  # processors may raise any exception, including StopIteration and IndexError
            raise PromptmillError(
                Code.INVALID_IMAGE,
                f"The model's processor cannot take this prompt's images: {type(error).__name__}: {first_line(error)}",
                "Send images of another size or fewer of them.",
            ) from None
        data = dict(made)
        tokens: list[int] = data.pop("input_ids")[0].tolist()
        for name in ("attention_mask", "labels"):  # unused: the engine makes its own mask, and labels are for training
            data.pop(name, None)
        marks = {name: value for name, value in data.items() if _is_per_token(value, len(tokens))}
        return tokens, ImageInputs({name: value for name, value in data.items() if name not in marks}, marks)

    def layout(self, tokenizer: Any, template: str | None) -> ImageLayout:
        """Return the layout of turns for `template`, which `tokenizer` applies."""
        return ImageLayout(tokenizer, template, self.mark)

    def _check_marks(self, text: str, images: int) -> None:
        """Raise an error if the number of marks is wrong: processors and models would fail late or misplace images."""
        if self.mark is None or (marks := text.count(self.mark)) == images:
            return
        raise mark_in_text(self.mark) if marks > images else misplaced_images(marks, images)


def _mark(processor: Any) -> str | None:
    mark = getattr(processor, "image_token", None)
    return getattr(mark, "content", mark) or None  # in some processors, the mark is an `AddedToken`


def _is_per_token(value: Any, tokens: int) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and tuple(value.shape) == (1, tokens)


class ImageLayout:
    """Converts turns for an image model's template: content becomes a text, or a list of text and image parts.

    Templates differ in the form they accept, so the template is tried once with test turns.
    """

    def __init__(self, tokenizer: Any, template: str | None, mark: str | None) -> None:
        """`mark`: the mark of an image in a text, if known. If `template` is None, turns become texts with marks."""
        self._mark = mark
        text, image = {"type": "text", "text": _BEFORE}, {"type": "image"}
        after = {"type": "text", "text": _AFTER}
        seen = _probe(tokenizer, template, [text, image, after])
        self._takes_lists = _BEFORE in seen and _AFTER in seen
        self._takes_texts = template is None or _BEFORE in _probe(tokenizer, template, _BEFORE)
        # many templates move the images of a turn in front of its texts
        between = seen.partition(_BEFORE)[2].partition(_AFTER)[0]
        self._keeps_places = self._takes_lists and (mark is None or mark in between)

    def turn(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return `message` in the template's form, with every image in its place."""
        content = message["content"] or ""
        if isinstance(content, str):
            content = content if self._takes_texts else [{"type": "text", "text": content}]
        elif not self._takes_lists or (_has_image_after_text(content) and not self._keeps_places):
            joined = "".join(part["text"] if part["type"] == "text" else self._mark or "" for part in content)
            content = joined if self._takes_texts else [{"type": "text", "text": joined}]
        else:
            content = [part if part["type"] == "text" else {"type": "image"} for part in content]
        return {**message, "content": content}


def _has_image_after_text(parts: list[dict[str, Any]]) -> bool:
    kinds = [part["type"] for part in parts]
    return "text" in kinds and "image" in kinds[kinds.index("text") :]


def _probe(tokenizer: Any, template: str | None, content: Any) -> str:
    if template is None:
        return ""
    try:
        turns = [{"role": "user", "content": content}]
        text: str = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception:  # this template does not accept such a turn; it may raise any exception
        return ""
    return text
