"""Places for the jobs of calls: how many run at a time, who is next, and how many may wait."""

import resource

from promptmill.jobs.manage import call_limits
from promptmill.jobs.manage.call_limits import Places


async def test_a_free_place_goes_to_the_session_with_the_fewest_running_jobs():
    places = Places(3)
    busy = [places.take("busy") for _ in range(6)]
    other = places.take("other")
    busy[0].leave()
    assert other.entry.is_set()
    assert not busy[3].entry.is_set()
    busy[1].leave()
    assert busy[3].entry.is_set()


async def test_a_session_leaves_half_of_the_places_of_a_shared_server_to_others(monkeypatch):
    monkeypatch.setattr(call_limits, "MOST_OPEN", 4)
    shared, alone = Places.of_process(is_shared=True), Places.of_process(is_shared=False)
    assert [shared.take("a").entry.is_set() for _ in range(4)] == [True, True, False, False]
    assert [shared.take("b").entry.is_set() for _ in range(2)] == [True, True]
    assert [alone.take("a").entry.is_set() for _ in range(5)] == [True, True, True, True, False]


async def test_the_files_of_running_jobs_take_a_quarter_of_the_descriptors(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    places = Places.of_process(is_shared=False)
    assert sum(places.take("a").entry.is_set() for _ in range(100)) == 1024 // 4 // call_limits._FILES
