"""The plan for documents: a row with a long text is read in pieces.

    row ─▶ pieces ─▶ an answer about each ─▶ merged ─▶ the row's answer
             │              │                  └ conflicting fields ─▶ a last request
             │              └ stored in the job's database: after a kill, only pieces without an answer are sent
             └ a piece that the model refuses as too long is cut in two

A short row is sent whole. The requests of a row pass through the same functions as all requests, so each has its price,
retries and ledger entry; they share the key of the row and differ in `choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from promptmill.answers.response_format import schema_of
from promptmill.config.model_config import ModelConfig
from promptmill.core.bounds import MOST_TOKENS
from promptmill.core.errors import Named, Words, input_error
from promptmill.core.request import Conversation, Message, Request
from promptmill.core.wording import counted
from promptmill.features.documents.cutting import LEAST, How, fits
from promptmill.features.documents.differences import status_of
from promptmill.features.documents.document import FIELDS, JOIN, Document, text_before
from promptmill.features.documents.merging import may_conflict
from promptmill.files.format_table import whole
from promptmill.jobs.columns.column_names import SOURCES
from promptmill.jobs.store.database import JobDatabase
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.plan import Estimate, JobSpec, Plan, PlanWork, RunningJob
from promptmill.jobs.store.records import Record
from promptmill.steps.likely import LikelyLengths

AUTO = "auto"
_BYTES_PER_TOKEN = 4  # an estimate for answers


class Split(Plan):
    """Reads rows with a long text in pieces, and merges the answers."""

    fields: ClassVar[Sequence[str]] = (SOURCES,)
    how: How

    @classmethod
    def of(cls, options: Mapping[str, Any], models: Sequence[str]) -> Split | None:
        """Return the plan for the option `split`; None if it is not set. Raises `PromptmillError` (`invalid_input`)."""
        del models
        if (size := options.get("split")) is None:
            return None
        if size != AUTO and (isinstance(size, bool) or not isinstance(size, int) or not LEAST <= size <= MOST_TOKENS):
            how = f"write tokens, {LEAST} to {MOST_TOKENS}, or {AUTO}."
            raise input_error(Named("split"), f" is {str(size)[:20]}; {how}")
        if size == AUTO and options.get("batch"):  # refused: each trial of a size would take as long as a batch
            raise input_error(Named("split", AUTO), " tries sizes live; with ", Named("batch"), ", write tokens.")
        overlap = options.get("overlap")
        if overlap is not None and (
            not isinstance(overlap, int) or overlap < 0 or (size != AUTO and overlap > size // 2)
        ):
            raise input_error(Named("overlap"), f" is {str(overlap)[:20]}; write tokens, half a piece at most.")
        merge, prompt = options.get("merge") or "ask", options.get("merge_prompt") or ""
        return cls(how=How(size=None if size == AUTO else size, overlap=overlap, merge=merge, merge_prompt=prompt))

    def check(self, config: ModelConfig, question: JobPrompts) -> None:
        """Raise `PromptmillError` (`invalid_input`) for a job with several answers to a request."""
        del question
        if (answers := config.settings.sampling_params.n or 1) > 1:
            raise input_error(Named("split"), f" needs one answer to a request, but `sampling_params.n` is {answers}.")

    def hints(self, inputs: Sequence[Path]) -> Sequence[Words]:
        """Return a hint for a text file whose lines are rows. It names the option that makes the file one document."""
        text = next((path.name for path in inputs if (found := whole(path)) is not None and found.whole == "text"), "")
        if not text:
            return ()
        rest = " makes it one document, which a prompt names {{content}}."
        return ((f"Each line of {text} is a row. ", Named("each", "file"), rest),)

    def resumed(self, begun: Plan, job_id: str, *, sends_all: bool) -> Plan:
        """Return this plan. Raises `PromptmillError` (`invalid_input`) if rows may have answers from other pieces."""
        if sends_all or begun == self or type(begun) is Plan:  # answers about whole rows are kept
            return self
        was = f"pieces of {begun.how.size or AUTO}" if isinstance(begun, Split) else "another plan"
        raise input_error(
            f"Job {job_id} was begun with {was}, and its answers are paid. Keep that, send all rows again with ",
            Named("again", "all"),
            ", or name another output.",
        )

    def sending(self, config: ModelConfig) -> Callable[[Request, str], Iterator[Request]]:
        """Return a function that converts a row to its requests: one for a short row; for a long row, one for each
        piece, and the last request, in which texts of the likely length stand for the answers."""
        del config
        return partial(self._sent, LikelyLengths())

    def _sent(self, lengths: LikelyLengths, request: Request, prompt: str) -> Iterator[Request]:
        *before, last = messages = request.conversation.messages or (Message("user", None),)
        system, size = text_before(messages), self.how.size
        if size is None or not isinstance(last.content, str) or fits(system + last.content, size):
            yield request
            return
        fields = request.fields
        document = Document.of(last.content, prompt) if fields is None else Document.of_fields(fields)
        pieces = [*document.pieces(size, self.how.repeated(size), system=system)]
        messages_of_row = [document.message(piece, FIELDS) for piece in pieces]
        if self._may_ask_last(request):
            answer = "-" * (lengths.of(request).tokens * _BYTES_PER_TOKEN)
            said = "\n\n".join(f"[{document.place(piece)}]\n{answer}" for piece in pieces)
            messages_of_row.append(document.last(JOIN, said, self.how.merge_prompt))
        for message in messages_of_row:
            yield request.changed(conversation=Conversation((*before, Message(last.role, message, last.extra))))

    def _may_ask_last(self, request: Request) -> bool:
        """Return whether a row may need a last request, because the labels of its pieces may tie, or the fields may
        conflict."""
        if request.sampling.choices is not None:
            return True
        schema = schema_of(request.sampling.response_format)
        return self.how.merge != "first" if schema is None else may_conflict(schema, self.how.merge)

    def estimate(
        self,
        store: JobDatabase,
        spec: JobSpec,
        configs: Mapping[str, ModelConfig],
        checked: Mapping[str, Any],
        *,
        end: int,
    ) -> Estimate:
        """Return the number of requests if the size of pieces is known; otherwise, an empty estimate."""
        del store, spec, end
        if self.how.size is None:
            return Estimate()
        requests = checked["requests"] * len(configs)
        return Estimate(words=f"about {counted(requests, 'request')}, with the pieces of long rows")

    def work(self, job: RunningJob) -> PlanWork:
        """Return the reader of long rows for one run."""
        from promptmill.features.documents.long_rows import LongRows

        return LongRows(job, self.how)

    def marks(self, spec: JobSpec, record: Record, beside: Sequence[Record | None]) -> dict[str, object]:
        """Return the location of each value in the document; None for a row that was sent whole."""
        del spec, beside
        return {SOURCES: record.extras.get(SOURCES)}

    def figures(self, store: JobDatabase, spec: JobSpec, fields: Sequence[str], before: int) -> Mapping[str, object]:
        """Return the counts of fields for which pieces have different values."""
        del spec, fields
        return status_of(store, before)
