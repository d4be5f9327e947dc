"""Bytes that several holders share."""

import threading

import pytest

from promptmill.system.memory import Memory


def test_who_needs_more_than_is_free_waits_until_it_is():
    memory = Memory(100)
    inside, go, order = threading.Event(), threading.Event(), []

    def first():
        with memory.hold(60):
            inside.set()
            go.wait()
            order.append("first")

    def second():
        inside.wait()
        go.set()
        with memory.hold(60):
            order.append("second")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


def test_what_is_larger_than_the_limit_is_alone_and_an_error_frees_it():
    memory = Memory(100)
    with memory.hold(1_000):
        other = memory.hold()
        room = other.grow(100)
        assert not room.done()
    assert room.done()


def test_an_error_frees_what_was_held():
    memory = Memory(100)
    with pytest.raises(ValueError, match="broken"), memory.hold(100):
        raise ValueError("broken")
    assert memory.held == 0


def test_one_holder_at_a_time_grows_beyond_the_limit():
    memory = Memory(1_000, one_beyond=True)
    first, second, third = (memory.hold() for _ in range(3))
    assert first.grow(900).done()
    assert second.grow(900).done()
    waiting = first.grow(100), third.grow(100)
    assert not any(room.done() for room in waiting)
    assert second.grow(5_000).done()
    second.free()
    assert all(room.done() for room in waiting)
    first.free()
    assert memory.held == 100
    del third, waiting
    assert memory.held == 0


def test_who_stops_waiting_keeps_what_it_has_and_lets_others_go_on():
    memory = Memory(1_000)
    first, second, third = (memory.hold() for _ in range(3))
    assert first.grow(500).done()
    assert second.grow(400).done()
    assert not second.grow(500).done()
    behind = third.grow(100)
    assert not behind.done()
    second.stop_waiting()
    assert behind.done()
    assert memory.held == 1_000
