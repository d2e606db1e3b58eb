"""Entries by path, more of them than are kept in memory: always what a dictionary would hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.rootfs.entry import Entry, Kind
from executor.solver import external_sort
from executor.solver.external_sort import ExternalSort
from executor.store.spool import SpooledList

NAMES = st.sampled_from([b"a", b"a-b", b"b", b"c", b"\xff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
ACTIONS = st.lists(st.tuples(PATHS, st.sampled_from(["put", "put", "put", "remove below", "get"])), max_size=40)


@given(ACTIONS)
def test_it_is_a_sorted_dictionary(actions: list[tuple[bytes, str]]) -> None:
    expected: dict[bytes, Entry] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(external_sort, "HELD", 3)
        patch.setattr(external_sort, "BATCH", 2)
        found = ExternalSort()
        for number, (path, action) in enumerate(actions):
            if action == "put":
                expected[path] = Entry(path, Kind.FILE, size=number)
                found.put(expected[path])
            elif action == "remove below":
                expected = {each: entry for each, entry in expected.items() if not each.startswith(path + b"/")}
                found.remove_below(path)
            assert found.get(path) == expected.get(path)
        assert all(found.get(path) == entry for path, entry in expected.items())
        assert list(found.finish()) == [expected[path] for path in sorted(expected, key=lambda each: each.split(b"/"))]


def test_a_hard_link_follows_what_it_leads_to() -> None:
    found = ExternalSort()
    found.put(Entry(b"b", Kind.FILE, size=1, source=b"/content"))
    found.put(Entry(b"a", Kind.HARDLINK, link=b"b"))
    assert [(each.path, each.kind, each.link, each.source) for each in found.finish()] == [
        (b"a", Kind.FILE, b"", b"/content"),
        (b"b", Kind.HARDLINK, b"a", b""),
    ]


def test_what_comes_in_order_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "HELD", 10)
    monkeypatch.setattr(SpooledList, "append", None)
    found = ExternalSort()
    for number in range(1000):
        found.put(Entry(b"%04d" % number, Kind.DIRECTORY))
    assert [int(each.path) for each in found.finish()] == list(range(1000))
