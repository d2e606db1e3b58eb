"""Cache keys: equal inputs, equal keys, and nothing else ever has the same one."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from executor.solver.keys import Part, Rows, encodings, key

ATOMS = st.one_of(st.text(max_size=6), st.binary(max_size=6), st.integers(), st.booleans(), st.none())
PARTS: st.SearchStrategy[Part] = st.recursive(
    ATOMS, lambda below: st.lists(below, max_size=4).map(tuple), max_leaves=12
)


def same(one: Part, other: Part) -> bool:
    """Equality that tells True from 1 and "" from b""."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(PARTS, PARTS)
def test_different_inputs_have_different_keys(one: Part, other: Part) -> None:
    assert (key("k", one) == key("k", other)) is same(one, other)


@given(st.lists(PARTS, max_size=4), st.integers(0, 4), PARTS)
def test_one_more_part_is_another_key(parts: list[Part], place: int, extra: Part) -> None:
    more = [*parts[:place], extra, *parts[place:]]
    assert key("k", *parts) != key("k", *more)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((("A=x-B=z", "B=y"),), (("A=x", "B=z-B=y"),)),
        ((("A", "x"), ("B", "y")), (("A", "x", "B", "y"),)),
        ((("a", "b"), ()), (("a",), ("b",))),
        (("ab", "c"), ("a", "bc")),
        (("",), ()),
        (("", ""), ("",)),
        (((),), ()),
        ((None,), ("",)),
        ((None,), (False,)),
        ((0,), (False,)),
        ((1,), (True,)),
        ((1,), ("1",)),
        (("a",), (b"a",)),
        ((12, 3), (1, 23)),
        (("s1:a",), ("a",)),
    ],
)
def test_framing(one: tuple[Part, ...], other: tuple[Part, ...]) -> None:
    assert key("k", *one) != key("k", *other)


def test_the_kind_counts() -> None:
    assert key("step", "a") != key("layer", "a")
    assert key("step", "a") != key("stepa")


def test_a_key_is_a_file_name_and_a_tag() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", key("k"))


def test_bytes_that_are_no_text_are_told_apart() -> None:
    assert key("k", "\udcff") != key("k", "\udcfe")


@given(st.text(max_size=6), st.binary(max_size=6))
def test_text_that_is_not_utf8_is_told_from_other_text(text: str, data: bytes) -> None:
    name = data.decode("utf-8", "surrogateescape")
    assert (key("k", text) == key("k", name)) is (text == name)
    assert key("k", name) != key("k", data)


@given(st.lists(PARTS, max_size=4), st.lists(PARTS, max_size=40), st.lists(PARTS, max_size=4))
@example([], [], [1 << 63, -(1 << 63) - 1])
@example([], ["\udc80"], ["ä", (1 << 64) - 1, 1 << 64])
def test_rows_are_a_tuple_that_nobody_holds(before: list[Part], parts: list[Part], after: list[Part]) -> None:
    rows = Rows(len(parts), lambda: encodings(parts))
    assert key("k", *before, ("x", rows), *after) == key("k", *before, ("x", tuple(parts)), *after)


@pytest.mark.parametrize("count", [0, 15, 16, 513, 65_535, 65_536])
def test_rows_of_any_number(count: int) -> None:
    assert key("k", Rows(count, lambda: encodings(range(count)))) == key("k", tuple(range(count)))
