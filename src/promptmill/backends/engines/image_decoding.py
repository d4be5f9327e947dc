"""The images of a submitted request, decoded for the engines' processors; errors about their places in the prompt."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from promptmill.core.errors import Code, PromptmillError, input_error

if TYPE_CHECKING:
    from PIL.Image import Image


def pictures(images: Iterable[str]) -> list[Image]:
    """Return the `images` of a `submit` message in their order, as 8-bit RGB on white.

    Raises `PromptmillError` (`invalid_image`) for an image whose data is broken.
    """
    return [_decoded(encoded, place) for place, encoded in enumerate(images, 1)]


def _decoded(encoded: str, place: int) -> Image:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the size, which the server has checked
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
                return _on_white(image)
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise PromptmillError(
            Code.INVALID_IMAGE, f"Image {place} of the prompt is broken ({type(error).__name__}).", "Make it again."
        ) from None


def _on_white(image: Image) -> Image:
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    upper = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")


def mark_in_text(mark: str) -> PromptmillError:
    """Return the error for a prompt whose text contains `mark`, the model's mark of an image."""
    return input_error(
        f"The prompt's own text contains {mark}, which stands for an image in this model; "
        "write it in another way, or make it the `image_tag`."
    )


def misplaced(found: int, images: int) -> PromptmillError:
    """Return the error for a prompt with `images` images of which the chat template kept `found`."""
    return PromptmillError(
        Code.UNSUPPORTED,
        f"The model's chat template has a place for {found} of the prompt's {images} images.",
        "Put the images into user turns, or use another model.",
    )
