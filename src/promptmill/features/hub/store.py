"""The Hugging Face Hub as a store of inputs and outputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from promptmill.features.hub import dataset_card, hub
from promptmill.jobs.inputs.remote_files import RemoteOutput, Say, Store
from promptmill.jobs.store.folder import Folder
from promptmill.jobs.store.index import JobFolders


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
        """Raise `PromptmillError` if the user may not write to the dataset, or if it has another file of this name."""
        hub.check_may_write(self._place)
        super().check(may_replace=may_replace)

    def _upload(self, folder: Folder) -> None:
        place = self._place
        card = functools.partial(dataset_card.with_section, folder=folder, file=place.path)
        hub.commit(place, self.local, dataset_card.title(folder), card)

    def _local(self) -> Sequence[str]:
        """Return the digests of the file, because a killed run may have committed the file without recording it."""
        return hub.digests_of(self.local) if self.local.is_file() else ()

    def _key(self) -> str | None:
        return hub.digest(self._place)

    @property
    def _place(self) -> hub.Dataset:
        return hub.Dataset.of(self.url)
