"""A job without an endpoint: its input is read into its database, its rows are answered, its output is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptmill.backends.protocol import Completion
from promptmill.files import files as input_files
from promptmill.files import json_values, path_formats
from promptmill.jobs.export import output
from promptmill.jobs.ingest import ingest
from promptmill.jobs.inputs.any_format import format_of_input, input_of
from promptmill.jobs.inputs.question_columns import questions_of
from promptmill.jobs.rows.row_lines import RowReader
from promptmill.jobs.rows.row_questions import RowRequests
from promptmill.jobs.store.database import JobDatabase, Row, Work
from promptmill.jobs.store.description import JobPrompts
from promptmill.jobs.store.plan import JobSpec
from promptmill.jobs.store.records import record_of
from promptmill.jobs.store.spec import InputSpec, OutputSpec


class Ingested:
    """A job in a folder."""

    def __init__(
        self,
        folder: Path,
        *given: str,
        output_name: str = "out.jsonl",
        encoding: str | None = None,
        shard: str | None = None,
        work: Work | None = None,
        disk_share: float = 1.0,
        **question: Any,
    ) -> None:
        """Read the files `given`."""
        self._given, self.target, self.encoding = given, folder / output_name, encoding
        self.folder, self._work, self._disk_share = folder, work or Work(), disk_share
        self.store = JobDatabase(folder / f"{len(list(folder.glob('*.db')))}.db", write=True)
        files = self.files()
        self.spec = JobSpec(
            job_id="job-0123456789",
            created=0,
            input=InputSpec(path=files.parts[0].path, format=format_of_input(files), encoding=encoding),
            question=JobPrompts(**question),
            output=OutputSpec(path=self.target, format="", shard=shard),
            backend="openai",
            model="m",
        )
        self.set_target(output_name)
        try:
            self.read()
        except BaseException:
            self.store.close()
            raise

    def files(self) -> input_files.InputFiles:
        """The files of the input, as they are now."""
        parts = input_files.find([self.folder / name for name in self._given], self.target)
        found = input_files.opened(parts)
        found.encoding = self.encoding or found.encoding
        return found

    def read(self) -> None:
        """Read the input, again if it was read before."""
        files = self.files()
        source = input_of(files, self.spec.input.format)
        self.spec, _ = ingest(self.store, self.spec, source, self._work, files, disk_share=self._disk_share)

    @property
    def rows(self) -> list[Row]:
        """The rows in the database."""
        return list(self.store.rows())

    @property
    def asked(self) -> list[Any]:
        """What each row asks: the fields of its question, or its problem."""
        (questions,) = questions_of(self.spec.question, self.spec.input.format, self.spec.input.header)
        return [
            questions.asked(row.cells or b"", "")[0] if row.line is None else json_values.load(row.line, "")
            for row in self.rows
        ]

    @property
    def requests(self) -> RowRequests:
        """How the rows become requests."""
        (questions,) = questions_of(self.spec.question, self.spec.input.format, self.spec.input.header)
        column = self.spec.question.column if self.spec.input.format == "jsonl" else None
        return RowRequests(RowReader(path_formats.row_kind(self.spec.input.format), prompt_column=column), questions)

    def answer(self) -> None:
        """Answer row n by `An`."""
        first = 0
        while page := self.store.row_page(first):
            self.store.write([record_of(row.n, Completion(f"A{row.n}", "stop"), row.asked) for row in page])
            first = page[-1].n + 1

    def write(self, name: str) -> bytes:
        """Return the output of this name, with an answer to each row."""
        self.set_target(name)
        self.answer()
        return output.write_output(self.store, self.spec, Work()).partial.read_bytes()

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    def set_target(self, name: str) -> None:
        """Have an output of this name."""
        self.target = self.folder / name
        self.spec = self.spec.with_output(
            path=self.target, format=path_formats.format_of_output(self.target, self.spec.input.format).key
        )


def packed(path: Path, data: bytes) -> None:
    """Write `data` to `path`, compressed as its name says, in two members as tools that work in parallel write it."""
    with path.open("wb") as out:
        for part in (data[:9], data[9:]):
            with path_formats.compressed(out, path_formats.compression_of(path)) as file:
                file.write(part)
