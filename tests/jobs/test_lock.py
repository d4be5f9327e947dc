"""A job needs a lock: one process at a time runs it."""

from __future__ import annotations

import errno
import sys

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_where_the_file_system_has_no_locks_the_error_names_a_folder_for_jobs(bench, monkeypatch):
    import fcntl

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    bench.prompts(2)
    monkeypatch.setattr(fcntl, "flock", refused)

    said = " ".join(bench.fail().split())

    assert "no locks available. Its file system has no locks; keep the job in a folder of another one: --state" in said
    assert not bench.upstream.seen
