"""The Hugging Face Hub as a store of inputs and outputs.

The card of a dataset has a section about the origin of each output's answers. The section names neither prompts nor
local files; digests show whether two outputs used the same prompt.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from promptmill.core.money import dollars
from promptmill.core.version import __version__
from promptmill.features.hub import hub
from promptmill.jobs.inputs.remote_files import RemoteOutput, Say, Store
from promptmill.jobs.store import status
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders
from promptmill.jobs.store.spec import digest
from promptmill.jobs.store.status_record import Status

_HOME = "https://github.com/promptmill/promptmill"
_NEW = "---\ntags:\n- promptmill\n---\n"


class HubStore(Store):
    """Datasets at the commit with which a job began; fsspec handles other URLs of the Hub."""

    extra: ClassVar[str] = "hub"

    def pinned(self, url: str, before: str, say: Say) -> str:
        """Return the URL of a dataset at a commit, see `hub.pinned`."""
        return hub.pinned(url, before, say) if hub.is_dataset(url) else url

    def urls_in(self, url: str) -> Sequence[str] | None:
        """Return the URLs of the data files of a dataset; None for other URLs."""
        return hub.files_of(url) if hub.is_dataset(url) else None

    def output(self, folders: JobFolders, url: str) -> RemoteOutput:
        """Return the output in a dataset. Raises `PromptmillError` if the URL names no dataset."""
        place = hub.output_place(url)
        return HubOutput.at(folders, place.url, place.file_name)

    def open(self, url: str) -> tuple[Any, str]:
        """Open a URL with fsspec, without progress bars and telemetry."""
        hub.set_quiet()
        return super().open(url)


class HubOutput(RemoteOutput):
    """An output in a dataset of the Hugging Face Hub. One commit contains the data file and the dataset's card."""

    def check(self, *, may_replace: bool) -> None:
        """Raise `PromptmillError` if the user may not write to the dataset, or if it has another file of that name."""
        hub.check_may_write(self._place)
        super().check(may_replace=may_replace)

    def _upload(self, folder: Folder) -> None:
        place = self._place
        card = functools.partial(_with_section, folder=folder, file=place.path)
        hub.commit(place, self.local, _title(folder), card)

    def _local(self) -> Sequence[str]:
        """Return the digests of the file, because a killed run may have committed the file without recording it."""
        return hub.digests_of(self.local) if self.local.is_file() else ()

    def _key(self) -> str | None:
        return hub.digest(self._place)

    @property
    def _place(self) -> hub.Dataset:
        return hub.Dataset.of(self.url)


def _with_section(card: str, folder: Folder, file: str) -> str:
    """Return the card with a section about the data file `file`, which the job in `folder` wrote.

    The section replaces the file's earlier section; all other text stays. The same job always gives the same text.
    Raises the errors of `Folder.known_spec`.
    """
    begin, end = f"<!-- promptmill: {file} -->", f"<!-- end of promptmill: {file} -->"
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(folder))
    section = (
        f"{begin}\n## {file}\n\nAnswers of a model, made with [promptmill]({_HOME}) {__version__}.\n\n"
        f"| | |\n|---|---|\n{rows}\n{end}"
    )
    earlier = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if earlier.search(card):
        return earlier.sub(lambda _: section, card)
    return f"{(card or _NEW).rstrip()}\n\n{section}\n"


def _title(folder: Folder) -> str:
    """Return the title for the commit."""
    found = status.read(folder)
    return f"promptmill: {_rows(found):,} rows by {found['model'] or 'a model'}"[:200]


def _rows(found: Status) -> int:
    """Return the number of rows of the data file: skipped rows are not in it."""
    return (found.get("total") or 0) - found.get("skipped", 0)


def _facts(folder: Folder) -> list[tuple[str, str]]:
    found, spec, order = status.read(folder), folder.known_spec(), folder.order
    cost = found.get("cost")
    facts = [
        ("model", found["model"] or "unknown"),
        ("rows", f"{_rows(found):,}: {found.get('answered', 0):,} answered, {found.get('failed', 0):,} failed"),
        ("tokens", f"{found.get('prompt_tokens', 0):,} in, {found.get('completion_tokens', 0):,} out"),
        ("cost", "unknown: no price is known" if cost is None else dollars(cost)),
    ]
    source = order.shown.urls.get("input_file", "") if order is not None else ""
    if source.startswith(hub.SCHEME):
        facts.insert(1, ("input", source))
    templates: Sequence[str] = spec.question.templates
    facts += [("prompt", f"sha256 {hashlib.sha256(text.encode()).hexdigest()}") for text in templates]
    if not templates:
        facts.append(("prompt", f"the column {spec.question.column or 'prompt'}"))
    system = spec.targets[0].fingerprint.get("system_prompt", "")
    if system and system != digest(""):
        facts.append(("system prompt", f"digest {system}"))
    return facts


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
