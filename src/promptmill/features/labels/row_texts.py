"""The texts of rows, from which a student learns: prompts, or the fields in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from promptmill.backends.protocol import Completion, Failure
from promptmill.core.errors import PromptmillError
from promptmill.core.request import SYSTEM_ROLES, Request, TextPart
from promptmill.jobs.rows.plain_template import Template
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.store.database import PAGE, Row
from promptmill.jobs.store.plan import RunningJob


def rows_of(job: RunningJob, numbers: Iterable[int]) -> Iterator[list[Row]]:
    """Yield lists of the rows with these numbers. Blocks, and raises the errors of `JobDatabase`."""
    left = list(numbers)
    while left:
        job.work.check()
        found = job.store.rows_at(left[:PAGE])
        if not found:  # the row was removed
            left = left[PAGE:]
            continue
        yield found
        done = found[-1].n
        left = [n for n in left[:PAGE] if n > done] + left[PAGE:]


def texts_of(
    rows: Sequence[Row], maker: RowRequests, text_of: Callable[[Request], str]
) -> tuple[dict[int, str], dict[int, Completion | Failure]]:
    """Return the texts of rows by their numbers, and the failures of rows without a request."""
    texts, failures = dict[int, str](), dict[int, Completion | Failure]()
    for row in rows:
        try:
            texts[row.n] = text_of(maker.request(row.n, row.line, row.cells or b""))
        except PromptmillError as error:
            failures[row.n] = Failure(error)
    return texts, failures


def prompt_of(request: Request) -> str:
    """Return the texts of a request, without the system prompt."""
    texts = []
    for message in request.conversation.messages:
        if message.role not in SYSTEM_ROLES:
            content = message.content
            parts = content if isinstance(content, tuple) else (TextPart(content or ""),)
            texts += [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts)


def fields_of(request: Request, template: Template | None) -> str:
    """Return the fields in the prompt of a request, each on a line.

    The other words of a prompt are the same for all rows, and would make all vectors similar. A prompt of a template
    with expressions is not divided into fields; only its constant beginning is left out.
    """
    if request.fields is not None:
        return "\n".join(request.fields.texts)
    return prompt_of(request) if template is None else prompt_of(request).removeprefix(template.start)
