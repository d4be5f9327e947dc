"""Places for the jobs of calls: how many run at a time, who is next, and how many may wait."""

import asyncio
import resource

from promptmill.files import documents
from promptmill.files.format_table import all_formats
from promptmill.jobs.manage import call_limits
from promptmill.jobs.manage.call_limits import JobPlaces, Readers
from promptmill.system.subprocesses import Halt


async def test_a_free_place_goes_to_the_session_with_the_fewest_server_jobs():
    places = JobPlaces(3)
    busy = [places.take("busy") for _ in range(6)]
    other = places.take("other")
    busy[0].leave()
    assert other.entry.is_set()
    assert not busy[3].entry.is_set()
    busy[1].leave()
    assert busy[3].entry.is_set()


async def test_a_session_leaves_half_of_the_places_of_a_shared_server_to_others(monkeypatch):
    monkeypatch.setattr(call_limits, "MOST_OPEN", 4)
    shared, alone = JobPlaces.of_process(is_shared=True), JobPlaces.of_process(is_shared=False)
    assert [shared.take("a").entry.is_set() for _ in range(4)] == [True, True, False, False]
    assert [shared.take("b").entry.is_set() for _ in range(2)] == [True, True]
    assert [alone.take("a").entry.is_set() for _ in range(5)] == [True, True, True, True, False]


async def test_the_files_of_running_jobs_take_a_quarter_of_the_descriptors(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    places = JobPlaces.of_process(is_shared=False)
    assert sum(places.take("a").entry.is_set() for _ in range(100)) == 1024 // 4 // call_limits._FILES


async def test_a_session_with_many_calls_reads_one_at_a_time_and_others_do_not_wait_for_them():
    readers, reading, order = Readers(2), asyncio.Event(), []

    async def read(session, name, until=None):
        async with readers.turn(session):
            order.append(name)
            if until is not None:
                await until.wait()

    busy = [asyncio.ensure_future(read("busy", f"busy {at}", reading)) for at in range(10)]
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(read(f"other {at}", f"other {at}")) for at in range(3)]
    await asyncio.wait(others)
    assert order == ["busy 0", "other 0", "other 1", "other 2"]
    reading.set()
    await asyncio.wait(busy)
    assert order[4:] == [f"busy {at}" for at in range(1, 10)]
    assert not readers._of_session


async def test_a_cancelled_call_gives_its_turn_back():
    readers, held = Readers(1), asyncio.Event()

    async def read(session):
        async with readers.turn(session):
            await held.wait()

    tasks = [asyncio.ensure_future(read(name)) for name in ("a", "a", "b", "c")]
    await asyncio.sleep(0)
    for task in tasks[:3]:
        task.cancel()
    held.set()
    await asyncio.wait_for(tasks[3], 10)


def test_the_time_of_documents_counts_for_the_call_that_reads_them():
    one, other = Halt(), Halt()
    (html,) = (each for each in all_formats() if each.text and ".html" in each.names)
    documents.text_of(html, b"<p>a</p>" * 20_000, one)
    assert one.computed_s > 0
    assert other.computed_s == 0
