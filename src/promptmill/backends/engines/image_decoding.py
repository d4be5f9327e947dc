"""The images of a submitted request, as the engines' processors take them, and what may be wrong with their places."""

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
    """Return the `images` of a `submit` message in their order, as 8-bit RGB; what is transparent becomes white.

    Raises `PromptmillError` (`invalid_image`) for one that is broken behind its header.
    """
    return [_decoded(encoded, place) for place, encoded in enumerate(images, 1)]


def _decoded(encoded: str, place: int) -> Image:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its size, which the server checked
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
    """Return the error of a prompt whose own text holds `mark`, what stands for an image to its model."""
    return input_error(
        f"The prompt's own text holds {mark}, which stands for an image to this model; "
        "write it in another way, or make it the `image_tag`."
    )


def misplaced(found: int, images: int) -> PromptmillError:
    """Return the error of a prompt of `images` of which the chat template left `found`."""
    return PromptmillError(
        Code.UNSUPPORTED,
        f"The model's chat template has a place for {found} of the prompt's {images} images.",
        "Put the images into user turns, or use another model.",
    )
