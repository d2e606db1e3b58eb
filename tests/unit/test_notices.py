"""What the registries' client says of what it waits for."""

from __future__ import annotations

import threading

import pytest

from executor.registry import notices
from executor.registry.notices import Notice, Wait, WaitMonitor


class Heard:
    """What was told, and a way to wait for it."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        self.changed = threading.Condition()

    def __call__(self, notice: Notice) -> None:
        assert isinstance(notice, Wait)
        with self.changed:
            self.waits.append(notice)
            self.changed.notify_all()

    def until(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.waits) >= count, timeout=20)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    monkeypatch.setattr(notices, "QUIET_SECONDS", 0.02)
    monkeypatch.setattr(notices, "AGAIN_SECONDS", 0.02)
    return Heard()


def test_a_question_without_an_answer_is_told_of_again_and_again_and_when_it_is_over(heard: Heard) -> None:
    watch = WaitMonitor(heard)
    with watch.over("resolve debian:12"):
        watch.waiting_for("docker.io")
        heard.until(2)
        watch.retrying("status 503")
        heard.until(4)
    watch.close()
    assert {(each.registry, each.what) for each in heard.waits} == {("docker.io", "resolve debian:12")}
    assert [each.over for each in heard.waits] == [False] * (len(heard.waits) - 1) + [True]
    assert heard.waits[-2].why == "status 503"
    assert heard.waits[-2].seconds >= 0.06


def test_what_is_answered_at_once_is_not_told_of() -> None:
    heard = Heard()
    watch = WaitMonitor(heard)
    for _ in range(10):
        with watch.over("resolve debian:12"):
            pass
    watch.close()
    assert heard.waits == []


def test_a_transfer_waits_while_nothing_moves(heard: Heard) -> None:
    watch = WaitMonitor(heard)
    with watch.over("pull sha256:…"):
        heard.until(1)
        watch.progress()
        assert heard.waits[-1].over
        count = len(heard.waits)
        heard.until(count + 1)
        assert heard.waits[count].seconds < heard.waits[count - 1].seconds + 20
    watch.close()


def test_a_question_within_a_question_is_part_of_it(heard: Heard) -> None:
    watch = WaitMonitor(heard)
    with watch.over("push sha256:…"):
        with watch.over("look for sha256:…"):
            heard.until(1)
        heard.until(2)
    watch.close()
    assert {each.what for each in heard.waits} == {"push sha256:…"}


def test_each_thread_has_its_own_question(heard: Heard) -> None:
    watch = WaitMonitor(heard)
    both = threading.Barrier(2)

    def ask(what: str) -> None:
        with watch.over(what):
            watch.waiting_for(f"{what}.example")
            both.wait(20)
            heard.until(6)

    threads = [threading.Thread(target=ask, args=(what,)) for what in ("one", "two")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    watch.close()
    assert {(each.registry, each.what) for each in heard.waits} == {("one.example", "one"), ("two.example", "two")}


def test_where_nobody_listens_there_is_no_thread() -> None:
    before = threading.active_count()
    with WaitMonitor(None).over("resolve debian:12"):
        assert threading.active_count() == before
