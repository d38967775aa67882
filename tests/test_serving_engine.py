"""The thread that computes for all."""

import threading

import pytest

from viscoin.serving.engine import Engine, Full, Late


class Slow:
    """A batch that waits until it may go on, and remembers what it was given."""

    def __init__(self):
        self.go, self.begun, self.seen = threading.Event(), threading.Event(), []

    def __call__(self, items):
        self.begun.set()
        self.go.wait(10)
        self.seen.append(list(items))
        return [item * 2 for item in items]


@pytest.fixture
def busy():
    """An engine that is at work on something slow."""
    engine, slow = Engine(waiting=3, together=4, deadline=5.0), Slow()
    first = engine.submit("slow", slow, [0])
    slow.begun.wait(5)
    yield engine, slow, first
    slow.go.set()
    engine.close()


def test_what_waits_of_one_kind_is_done_together_and_everybody_gets_their_own(busy):
    engine, slow, first = busy
    one, two = engine.submit("slow", slow, [1, 2]), engine.submit("slow", slow, [3])
    slow.go.set()
    assert (first.result(5), one.result(5), two.result(5)) == ([0], [2, 4], [6])
    assert slow.seen == [[0], [1, 2, 3]] and engine.counts.batches == 2 and engine.counts.computed == 4


def test_other_kinds_and_what_is_too_much_wait_in_their_order(busy):
    engine, slow, _ = busy
    other = Slow()
    other.go.set()
    one, two = engine.submit("slow", slow, [1, 2, 3]), engine.submit("other", other, [4])
    three = engine.submit("slow", slow, [5, 6])
    slow.go.set()
    assert one.result(5) == [2, 4, 6] and two.result(5) == [8] and three.result(5) == [10, 12]
    assert slow.seen == [[0], [1, 2, 3], [5, 6]]


def test_a_full_queue_refuses_at_once(busy):
    engine, slow, _ = busy
    for number in range(3):
        engine.submit("slow", slow, [number])
    with pytest.raises(Full):
        engine.submit("slow", slow, [9])
    assert engine.counts.rejected == 1 and len(engine) == 3


def test_what_was_given_up_is_not_computed(busy):
    engine, slow, _ = busy
    one, two = engine.submit("slow", slow, [1]), engine.submit("slow", slow, [2])
    assert one.cancel()
    slow.go.set()
    assert two.result(5) == [4] and slow.seen == [[0], [2]] and engine.counts.skipped == 1


def test_what_comes_too_late_is_told_so():
    engine, slow = Engine(deadline=0.05), Slow()
    engine.submit("slow", slow, [0])
    slow.begun.wait(5)
    late = engine.submit("slow", slow, [1])
    threading.Timer(0.2, slow.go.set).start()
    with pytest.raises(Late):
        late.result(5)
    assert slow.seen == [[0]]
    engine.close()


def test_an_error_reaches_those_who_wait_and_the_engine_goes_on():
    engine = Engine()

    def broken(_items):
        raise KeyError("x")

    with pytest.raises(KeyError):
        engine.submit("broken", broken, [1]).result(5)
    assert engine.submit("fine", lambda items: items, [1]).result(5) == [1]
    engine.close()
    with pytest.raises(Full):
        engine.submit("fine", lambda items: items, [1])
