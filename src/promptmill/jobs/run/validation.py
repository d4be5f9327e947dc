"""Checks all rows of an input without sending requests or creating a job."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from promptmill.answering.costs import price_of, tier_of
from promptmill.backends import rows
from promptmill.backends.protocol import Usage
from promptmill.config.resolved_config import ResolvedConfig
from promptmill.core.errors import Code, Named, PromptmillError, input_error
from promptmill.core.request import Conversation, TextPart, check_encodable
from promptmill.images import load as images
from promptmill.jobs import columns
from promptmill.jobs.export.batch_output import Ids
from promptmill.jobs.export.output import end_of
from promptmill.jobs.ingest import ingest
from promptmill.jobs.inputs import row_secrets
from promptmill.jobs.inputs.any_format import input_of
from promptmill.jobs.inputs.formats import row_kind
from promptmill.jobs.inputs.given import Given
from promptmill.jobs.run import admission
from promptmill.jobs.run.job_rounds import reader_of, requests_of
from promptmill.jobs.run.order_files import OrderFiles
from promptmill.jobs.store.database import JobDatabase, Work
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.order import JobOrder, Votes
from promptmill.jobs.store.spec import JobSpec, Origin

_SHOWN = 20
_BYTES_PER_TOKEN = 4  # English text; less accurate for other scripts


def check(
    plan: ResolvedConfig,
    order: JobOrder,
    folders: JobFolders,
    may_name: frozenset[str] | None = None,
    *,
    given: Given | None = None,
    are_paths_resolved: bool = False,
) -> dict[str, Any]:
    """Return the counts `rows`, `invalid` and `images`, the first `problems`, and an estimate of tokens.

    The estimate includes the system prompt, but not images or the additions of a chat template. `may_name`: see
    `RowReader`. `given`, `are_paths_resolved`: see `OrderFiles.of`.
    """
    if order.cut is not None:
        raise input_error("Validate the whole input, without ", Named("shard"), ".")
    files = OrderFiles.of(order, folders, given, are_resolved=are_paths_resolved, is_anew=True)
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory()))
        store = opened.enter_context(contextlib.closing(JobDatabase(folder / "job.db", write=True)))
        spec = admission.spec_of("", files, plan, order, {})
        assert files.input is not None
        spec, _ = ingest(store, spec, input_of(files.input, spec.input.format), Work())
        if spec.input.is_file:
            row_secrets.check(store, spec.input, plan.file_rule, Work())
        found = {"format": spec.input.format} | _check_rows(store, spec, plan, order, may_name=may_name)
        found["notes"] = list(columns.notes(spec))
        if spec.input.format != "batch" and (note := _repeated_ids(store, spec, order)):
            found["notes"].append(note)
        cost = _cost(plan, found)
        return found | cost if order.votes is None else _times_votes(found | cost, order.votes)


def _times_votes(found: dict[str, Any], votes: Votes) -> dict[str, Any]:
    """Return the findings with the tokens and costs of all votes, as if each were of the first model."""
    names = "estimated_prompt_tokens", "estimated_cost", "most_cost"
    every = {name: found[name] * len(votes.models) for name in names if found.get(name) is not None}
    if "estimated_cost" in found and len(set(votes.models)) > 1:
        found["notes"].append("The price is that of the first model for all votes.")
    return found | every


def _repeated_ids(store: JobDatabase, spec: JobSpec, order: JobOrder) -> str:
    """Return a note on rows that repeat an earlier row's `id`; `""` if there are none. Raises `OSError`."""
    where = rows.row_word(row_kind(spec.input.format))
    ids = Ids.of(store, spec, end_of(store, order.limits.rows))
    if not ids.repeated:
        return ""
    ((row, first),) = ids.examples
    return f"{where} {row + 1} has the `id` of {where} {first + 1}; repeated ids in all: {ids.repeated}."


def _check_rows(
    store: JobDatabase,
    spec: JobSpec,
    plan: ResolvedConfig,
    order: JobOrder,
    *,
    may_name: frozenset[str] | None,
) -> dict[str, Any]:
    count = invalid = skipped = pictures = tokens = 0
    problems: list[str] = []
    rules = images.ImageRules.of(plan.file_rule, plan.settings.max_image_pixels)
    kind, end = row_kind(spec.input.format), end_of(store, order.limits.rows)
    reader = reader_of(plan, spec.model_copy(update={"origin": Origin()}), order.system_prompt, may_name=may_name)
    requests = list(requests_of(spec, reader))
    for row in store.rows(last=end - 1):
        count += 1
        try:
            where = rows.place(kind, row.n)
            for one in requests:
                conversation = one.request(row.n, row.line, row.cells or b"").conversation
                tokens += -(-_bytes(conversation) // _BYTES_PER_TOKEN)
                pictures += len(conversation.images)
                _check_payload(conversation, rules, where)
        except PromptmillError as error:
            if spec.question.skip_empty and error.code is Code.EMPTY_PROMPT:
                skipped += 1
                continue
            invalid += 1
            if len(problems) < _SHOWN:
                problems.append(str(error))
    if kind == "batch":  # OpenAI refuses a file with a repeated id
        ids = Ids.of(store, spec, end, _SHOWN - len(problems))
        invalid += ids.repeated
        problems += [
            f"line {row + 1} has the custom_id of line {first + 1}; give each line its own."
            for row, first in ids.examples
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
            if not images.is_web(image.source):  # the endpoint fetches web images
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
