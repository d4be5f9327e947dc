"""The thumbnails of a job's rows for the page. A separate process with limited memory and time makes them.

The job's own process may read any image that its user may read. For the page, only files that calls may name are read,
and no image is fetched from the web.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from promptmill.core.feature import features
from promptmill.core.values import JsonDict
from promptmill.images.load import ImageRules, from_folder
from promptmill.images.thumbnails import thumbnail
from promptmill.jobs.caller import Caller
from promptmill.jobs.columns.column_names import SOURCES
from promptmill.jobs.manage.job_rows import JobRows
from promptmill.jobs.manage.server_jobs import ServerJobs
from promptmill.jobs.rows.row_lines import IMAGES
from promptmill.jobs.store.folder import Folder
from promptmill.system.call_files import FileRule

_COMPUTING_S = 60  # limit of the processor time; 32 images of 89 megapixels take 40 s
_FILE = "path"
"""The column of a row that is a whole file, such as a picture in a folder."""
_LARGEST = 8_000
"""The most characters of a thumbnail: together with the head of its `data:` URL, they take 8 KB."""


async def pictures(jobs: ServerJobs, caller: Caller, job_id: str, rows: Sequence[int]) -> JsonDict:
    """Return a thumbnail of the first image of each row, by the row's number, and the columns that may name images, the
    likeliest first.

    Raises `PromptmillError` (`invalid_input`).
    """
    folder = jobs.visible.find(job_id, caller)
    call = partial(_pictures, path=folder.path, rows=list(rows), rule=jobs.paths.rule.without_secrets)
    return await jobs.apart(call, folder.job_id, _COMPUTING_S)


async def pages(jobs: ServerJobs, caller: Caller, job_id: str, rows: Sequence[int]) -> JsonDict:
    """Return the pages of PDFs on which rows have quotes, by the numbers of the rows.

    Raises `PromptmillError` (`invalid_input`).
    """
    folder = jobs.visible.find(job_id, caller)
    call = partial(_pages, path=folder.path, rows=list(rows), rule=jobs.paths.rule)  # the rule finds secrets on pages
    return await jobs.apart(call, folder.job_id, _COMPUTING_S)


def _pages(*, path: Path, rows: list[int], rule: FileRule) -> JsonDict:
    folder, found = Folder(path), JsonDict()
    if "sources" in features():
        from promptmill.features.sources.page_pictures import page_pictures  # imported on use: it may be missing

        with folder.reading() as store:
            spec = folder.spec_in(store)
            for row in JobRows(store, spec).read(store.records_at([number - 1 for number in sorted(rows)])):
                file = from_folder(row.file, spec.image_folders)
                if shown := page_pictures(row.values.get(SOURCES), file, ImageRules(rule)):
                    found[str(row.number)] = shown
    return {"job_id": folder.job_id, "columns": [], "pictures": {}, "pages": found}


def _pictures(*, path: Path, rows: list[int], rule: FileRule) -> JsonDict:
    folder, rules = Folder(path), ImageRules(rule)
    with folder.reading() as store:
        spec = folder.spec_in(store)
        found = {
            str(number): thumbnail(from_folder(images[0], spec.image_folders), rules, _LARGEST)
            for number, images in JobRows(store, spec).images(rows)
        }
    column = spec.question.image_column
    return {
        "job_id": folder.job_id,
        "columns": [*([column] if column else [*IMAGES, "messages"]), _FILE],
        "pictures": {number: picture for number, picture in found.items() if picture is not None},
    }
