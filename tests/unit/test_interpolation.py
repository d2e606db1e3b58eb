"""Texts of a release file with variables in them."""

from __future__ import annotations

import pytest

from orchestrator.release.interpolation import InterpolationError, UnknownVariableError, interpolate

VALUES = {"A": "a", "EMPTY": "", "UNSET": None, "git.sha": "0123"}


def lookup(name: str) -> str | None:
    if name not in VALUES:
        raise UnknownVariableError(name)
    return VALUES[name]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x", "x"),
        ("${A}b${A}", "aba"),
        ("${git.sha}", "0123"),
        ("$A $$ $(x)", "$A $$ $(x)"),
        ("$${A}", "${A}"),
        ("${EMPTY}", ""),
        ("${A:-x}", "a"),
        ("${EMPTY:-x}", "x"),
        ("${UNSET:-x}", "x"),
        ("${UNSET:-}", ""),
        ("${A:+x}", "x"),
        ("${EMPTY:+x}", ""),
        ("${UNSET:+${UNSET}}", ""),
        ("${UNSET:-${A}-${EMPTY:-y}}z", "a-yz"),
        ("${A:-${UNSET}}", "a"),
        ("a}b", "a}b"),
    ],
)
def test_variables_are_replaced(text: str, found: str) -> None:
    assert interpolate(text, lookup) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${UNSET}", "the variable UNSET has no value"),
        ("${A", "the brace of ${A is not closed"),
        ("${A:-x", "the brace of ${A is not closed"),
        ("${A?x}", "not the name of a variable"),
        ("${}", "not the name of a variable"),
        ("${EMPTY:-" * 20 + "}" * 20, "nested too deeply"),
    ],
)
def test_what_is_no_text_says_why(text: str, why: str) -> None:
    with pytest.raises(InterpolationError) as caught:
        interpolate(text, lookup)
    assert why in str(caught.value)


@pytest.mark.parametrize("text", ["${B}", "${A:-${B}}", "${EMPTY:+${B}}"])
def test_an_unknown_variable_is_an_error_even_where_it_is_not_used(text: str) -> None:
    with pytest.raises(UnknownVariableError):
        interpolate(text, lookup)


def test_a_long_result_is_refused() -> None:
    with pytest.raises(InterpolationError, match="more than 65536 characters"):
        interpolate("${A}" * 70_000, lookup)
