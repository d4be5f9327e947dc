"""What is known of a job's rows: journal, index and counts, opened together and made to agree."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from promptmill.jobs.disk import RandomFile
from promptmill.jobs.folder import Folder
from promptmill.jobs.index import AGAIN, Index
from promptmill.jobs.journal import Head, Journal, ScanReport
from promptmill.jobs.tally import JobCounts

_LOOK_EVERY = 1024


class Ledger:
    """Open for one run, by the one process that holds the job's lock."""

    def __init__(self, folder: Folder, *, crash: Callable[[str], None] | None = None) -> None:
        """Raises `OSError`."""
        with contextlib.ExitStack() as opened:
            self.journal_file = RandomFile(folder.journal, writable=True)
            opened.callback(self.journal_file.close)
            self.index_file = RandomFile(folder.index, writable=True, fresh=True)
            opened.callback(self.index_file.close)
            self._opened = opened.pop_all()
        self.journal = Journal(self.journal_file, crash=crash)
        self.index = Index(self.index_file)
        self.tally = JobCounts()
        self.damage = ScanReport()

    def rebuild(self, *, again: Callable[[Head], bool], halt: threading.Event | None = None) -> None:
        """Read the journal through and make index and counts of it; rows for which `again` says so are to be done.

        Blocks, about 4 s per million rows; leaves early once `halt` is set. Raises `OSError`.
        """
        self.index.clear()
        self.tally.reset()
        self.damage = ScanReport()
        for number, (offset, head) in enumerate(self.journal.scan(self.damage)):
            if halt is not None and not number % _LOOK_EVERY and halt.is_set():
                return
            before = self.index.get(head.row)
            replaced = self.journal.head(before & ~AGAIN, head.row) if before else None
            if replaced is not None:  # attempts count from a row's very first
                self.tally.spend(replaced, -1)
                if not before & AGAIN:
                    self.tally.count(replaced, -1)
            self.tally.spend(head)
            if again(head):
                self.index.set(head.row, offset | AGAIN)
            else:
                self.tally.count(head)
                self.index.set(head.row, offset)
        if not self.damage.end:
            self.journal.begin()
        self.index.flush()

    def is_answered(self, row: int) -> bool:
        """Return whether `row` has an outcome that counts."""
        entry = self.index.get(row)
        return bool(entry) and not entry & AGAIN

    def close(self) -> None:
        """Close the files; what was flushed stays."""
        self._opened.close()
