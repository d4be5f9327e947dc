"""The lease that takes the place of a lock where the file system has none."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest

from promptmill.jobs.store import lock
from promptmill.jobs.store.lock import Lease, Lock
from waiting import eventually

NEVER_S = 3600.0


def taken(path: Path, beat_s: float = NEVER_S) -> Lease:
    """Take a lease that no process has."""
    found = Lease.take(path, beat_s=beat_s)
    assert found is not None
    return found


def make_old(path: Path) -> None:
    """Have the lease look as if its holder had been silent for a minute."""
    then = time.time() - 60
    os.utime(path, (then, then))


def test_a_lease_is_one_holders_until_it_is_released(tmp_path):
    first = taken(tmp_path / "lease")
    assert lock._is_alive(tmp_path / "lease")
    assert Lease.take(tmp_path / "lease") is None
    first.release()
    assert not lock._is_alive(tmp_path / "lease")
    taken(tmp_path / "lease").release()
    assert [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_a_silent_holder_loses_its_lease_and_cannot_release_the_next_ones(tmp_path):
    silent = taken(tmp_path / "lease")
    make_old(tmp_path / "lease")
    assert not lock._is_alive(tmp_path / "lease")
    following = taken(tmp_path / "lease")
    silent.release()
    assert lock._is_alive(tmp_path / "lease")
    following.release()


def test_a_holder_renews_its_lease_and_finds_out_that_another_one_has_it(tmp_path):
    held = taken(tmp_path / "lease", beat_s=0.01)
    make_old(tmp_path / "lease")
    eventually(lambda: lock._is_alive(tmp_path / "lease"))
    (tmp_path / "lease").write_text("another")
    eventually(lambda: held.lost)
    held.release()
    assert (tmp_path / "lease").read_text() == "another"


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_where_locks_are_refused_a_job_is_held_by_a_lease(tmp_path, monkeypatch):
    import fcntl

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    path = tmp_path / "lock"
    assert lock.has_locks(path)
    monkeypatch.setattr(fcntl, "flock", refused)
    held = Lock.take(path)
    assert held is not None
    assert (held.descriptor, held.lost) == (None, False)
    assert lock.is_held(path)
    assert not lock.has_locks(path)
    assert Lock.take(path) is None
    held.release()
    assert not lock.is_held(path)
    again = Lock.take(path)
    assert again is not None
    again.release()
