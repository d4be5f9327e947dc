"""Checks all rows of an input without sending a request or making a job."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from promptmill.answering.costs import price_of, tier_of
from promptmill.backends import rows
from promptmill.backends.protocol import Usage
from promptmill.backends.rows import RowReader
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import Conversation, TextPart, check_encodable
from promptmill.images import load as images
from promptmill.jobs.files import row_files, row_secrets
from promptmill.jobs.files.disk import TOO_LONG, Lines, RandomFile
from promptmill.jobs.files.row_files import InputFiles
from promptmill.jobs.files.spool import cells_of
from promptmill.jobs.files.tables import CellTable, ParquetTable, objects
from promptmill.jobs.run import admission, merge
from promptmill.jobs.run.batch_output import CustomIds
from promptmill.jobs.run.merge import JobFiles
from promptmill.jobs.run.unanswered_rows import row_reader
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.spec import JobRequest

_SHOWN = 20
_BYTES_PER_TOKEN = 4  # of English text; a worse estimate for other scripts


def check(
    plan: ResolvedConfig,
    order: JobRequest,
    may_name: frozenset[str] | None = None,
    *,
    are_paths_resolved: bool = False,
) -> dict[str, Any]:
    """Return counts of `rows`, `invalid` ones and `images`, the first `problems`, and an estimate of tokens.

    It counts the system prompt, and neither images nor what a chat template adds. `may_name`: see `RowReader`.
    `are_paths_resolved`: see `admission.paths_of`.
    """
    if order.cut is not None:
        raise input_error("Validate the whole input, without ", Named("shard"), ".")
    source, target, parts = admission.paths_of(order, are_resolved=are_paths_resolved)
    admission.check_output_path(order, target, parts)
    with contextlib.ExitStack() as opened:
        file = row_files.opened(parts, known=False, encoding=order.encoding)
        opened.callback(file.close)
        if not plan.file_rule.is_own(source):  # else its rows came in a call
            row_secrets.check(file, plan.file_rule)
        folder = Folder(Path(opened.enter_context(TemporaryDirectory())))
        spec = admission.spec_of(folder, (source, target), file, plan, order, job_id="")
        row_files.check_installed(target, *(part.path for part in parts))
        read: dict[str, Any] = {}
        merge.read_rows(JobFiles(spec, folder, file, None, lambda name, value: read.update({name: value})))
        lines, input_format = opened.enter_context(folder.lines(file, spec)), spec.input_format
        ids = (
            opened.enter_context(contextlib.closing(CustomIds(folder.duplicates))) if input_format == "batch" else None
        )
        reading = row_reader(
            plan,
            input_format,
            system_prompt=order.system_prompt,
            prompt_column=order.prompt_column,
            row_settings=order.rows_set,
            may_name=may_name,
        )
        rules = images.ImageRules.of(plan.file_rule, plan.settings.max_image_pixels)
        found = {"format": input_format} | _check_lines(lines, reading, rules, order, ids)
        found["notes"] = list(
            merge.notes_on_columns(spec.model_copy(update=read["spec"]), is_grid=bool(order.variants))
        )
        if ids is None and (note := _repeated_ids(file, lines, input_format, order.limit, folder.path / "ids")):
            found["notes"].append(note)
        return found | _cost(plan, found)


def _repeated_ids(files: InputFiles, lines: RandomFile, input_format: str, limit: int | None, scratch: Path) -> str:
    """Return the note on rows that repeat the `id` of an earlier row, "" when no row does. Raises `OSError`."""
    where = rows.row_word(row_files.row_kind(input_format))
    with contextlib.closing(CustomIds(scratch)) as ids:
        for row, value in itertools.islice(_ids(files, lines, input_format), limit):
            ids.note(value, row)
        count, examples = ids.repeated(1)
    if not count:
        return ""
    ((row, first),) = examples
    return f"{where} {row + 1} has the `id` of {where} {first + 1}; repeated ids in all: {count}."


def _ids(files: InputFiles, lines: RandomFile, input_format: str) -> Iterator[tuple[int, object]]:
    """Yield the number and the `id` of each row."""
    if input_format == "parquet":
        parquet = ParquetTable(files)
        if "id" in parquet.schema.names:
            yield from enumerate(row["id"] for batch in parquet.batches(["id"]) for row in objects(batch))
        return
    names: Sequence[str] = ()
    if input_format in row_files.CELLS:
        names = CellTable(files, input_format).header
        if "id" not in names:
            return
    found = Lines(lines)
    while block := found.read():
        for line in block:
            if not line.blank:
                yield line.row, _id_of(line.data or b"", names)


def _id_of(line: bytes, names: Sequence[str]) -> object:
    try:
        value = dict(zip(names, cells_of(line), strict=False)) if names else rows.load(rows.row_of(line), "")
    except PromptmillError:
        return None
    return value.get("id") if isinstance(value, dict) else None


def _check_lines(
    file: RandomFile, reading: RowReader, rules: images.ImageRules, order: JobRequest, ids: CustomIds | None
) -> dict[str, Any]:
    count = invalid = skipped = pictures = tokens = 0
    limit = order.limit
    problems: list[str] = []
    lines = Lines(file)
    while block := lines.read():
        for line in block:
            if line.blank:
                continue
            if limit is not None and count >= limit:
                break
            count += 1
            try:
                where = rows.place(reading.kind, line.row)
                if line.data is None:
                    raise input_error(f"{where} {TOO_LONG}.")
                conversation = reading.request(line.row, line.data).conversation
                tokens += -(-_bytes(conversation) // _BYTES_PER_TOKEN)
                pictures += len(conversation.images)
                _check_payload(conversation, rules, where)
                if ids is not None:
                    ids.note(rows.load(line.data, where).get("custom_id"), line.row)
            except PromptmillError as error:
                if order.skip_empty and error.code is Code.EMPTY_PROMPT:
                    skipped += 1
                    continue
                invalid += 1
                if len(problems) < _SHOWN:
                    problems.append(str(error))
        if limit is not None and count >= limit:
            break
    if ids is not None:  # OpenAI refuses a file with a repeated id
        repeated, examples = ids.repeated(_SHOWN - len(problems))
        invalid += repeated
        problems += [
            f"line {row + 1} has the custom_id of line {first + 1}; give each line one of its own."
            for row, first in examples
        ]
    return {
        "rows": count,
        "invalid": invalid,
        **({"skipped": skipped} if skipped else {}),
        "images": pictures,
        "estimated_prompt_tokens": tokens,
        "problems": problems,
    }


def _cost(plan: ResolvedConfig, found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the estimated cost of the prompts and the highest cost of the job, if the price is known."""
    price = price_of(plan)
    if price is None:
        return {}
    tokens, longest = found["estimated_prompt_tokens"], plan.settings.sampling_params.max_tokens
    rows_ = found["rows"] - found["invalid"]
    each = Usage(tokens // max(1, found["rows"]))  # prices may rise with the length of one prompt
    tier = tier_of(plan.settings.extra_params)
    prompts = price.cost(each, tier) * found["rows"]
    if longest is None:
        return {"estimated_cost": prompts, "most_cost": None}
    return {"estimated_cost": prompts, "most_cost": prompts + price.cost(Usage(0, longest), tier) * rows_}


def _check_payload(conversation: Conversation, rules: images.ImageRules, where: str) -> None:
    try:
        check_encodable(conversation)
        for image in conversation.images:
            if not images.is_web(image.source):  # the endpoint fetches those
                images.load_image(image.source, rules)
    except PromptmillError as error:
        raise PromptmillError(error.code, f"{where}: {error.message}", error.hint) from None


def _bytes(conversation: Conversation) -> int:
    size = 0
    for message in conversation.messages:
        content = message.content
        parts = content if isinstance(content, tuple) else (TextPart(content or ""),)
        size += sum(len(part.text.encode("utf-8", "replace")) for part in parts if isinstance(part, TextPart))
    return size
