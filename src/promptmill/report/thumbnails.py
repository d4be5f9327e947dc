"""Small images for a page."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence

from promptmill.core.errors import PromptmillError
from promptmill.images.load import ImageRules, from_folder, is_web, load_image
from promptmill.jobs.manage.job_rows import JobRow

_MOST_IMAGES, _IMAGE_SIDE = 200, 160
_PICTURES = 1_000_000  # characters of all thumbnails


class Thumbnails:
    """The first image of each of the first answered rows that have one, made small: the job could read it."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.found: dict[str, str] = {}
        """JPEG in base64, by the number of the row."""
        self._folders = folders
        self._rules = ImageRules()
        self._room = _PICTURES

    def of(self, rows: Iterable[JobRow]) -> Iterator[JobRow]:
        """Yield the rows, whose images are looked at."""
        for row in rows:
            has_image = row.images and not row.error and not is_web(row.images[0]) and str(row.number) not in self.found
            if has_image and len(self.found) < _MOST_IMAGES and self._room > 0:
                with contextlib.suppress(PromptmillError, OSError):  # it is not there any more
                    image = load_image(from_folder(row.images[0], self._folders), self._rules)
                    picture = base64.b64encode(_small(image.data)).decode()
                    self._room -= len(picture)
                    if self._room >= 0:
                        self.found[str(row.number)] = picture
            yield row


def _small(data: bytes) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (_IMAGE_SIDE, _IMAGE_SIDE))
        image.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
        image.convert("RGB").save(made, "JPEG", quality=60)
    return made.getvalue()
