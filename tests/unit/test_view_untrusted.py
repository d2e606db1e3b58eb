"""Text from outside, as it may be shown."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.view.untrusted import clean_line, clean_lines, clean_log, clean_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("", ""),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;2;1;2;3;4mrgb", "rgb"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r0m\x1b\\device string", "device string"),
        ("\x1b(Bcharset", "charset"),
        ("\x9b31m8-bit", "8-bit"),
        ("\x9d0;title\x9c8-bit title", "8-bit title"),
        ("cut short \x1b[", "cut short "),
        ("cut short \x1b", "cut short "),
        ("never ended \x1b]0;title", "never ended "),
        ("10%\r50%\r100%", "100%"),
        ("100%\r", "100%"),
        ("100%\r\x1b[K", "100%"),
        ("100%\r   ", "100%"),
        ("\r\r", ""),
        ("|\b/\b-", "-"),
        ("\b\bx", "x"),
        ("a\tb", "a       b"),
        ("a\x00b\x07c\x7fd", "abcd"),
        ("a\u202eb\u2066c", "a<U+202E>b<U+2066>c"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("heart \u2764\ufe0f", "heart \u2764"),
        ("no\u00a0break\u3000wide", "no break wide"),
        ("private \ue000 and half \udc80", "private \ufffd and half \ufffd"),
        ("日本語 ü e\u0301 ✓", "日本語 ü e\u0301 ✓"),
        ("[red]markup[/red] :smile:", "[red]markup[/red] :smile:"),
    ],
)
def test_output_is_shown_as_a_terminal_would_less_the_effects(text: str, shown: str) -> None:
    assert clean_log(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("RUN rm -rf / \rRUN echo hello", "RUN rm -rf /  RUN echo hello"),
        ("RUN a\x1b]0; && evil", "RUN a\\x1b]0; && evil"),
        ("RUN evil\b\b\b\bgood", "RUN evil\\x08\\x08\\x08\\x08good"),
        ("a\u202eb", "a<U+202E>b"),
        ("a\u200bb", "a<U+200B>b"),
        ("a\x9bb", "a\\x9bb"),
        ("two\nlines", "two lines"),
    ],
)
def test_other_text_hides_nothing(text: str, shown: str) -> None:
    assert clean_line(text) == shown


def test_an_instruction_over_several_lines_is_one_line() -> None:
    assert (
        clean_name("RUN apt-get update \\\n    && apt-get install\t x\r\n") == "RUN apt-get update && apt-get install x"
    )


def test_lines_are_split_wherever_a_terminal_would_begin_one() -> None:
    assert clean_lines("one\r\ntwo\n\nthree\x1b[m") == ("one", "two", "", "three\\x1b[m")
    assert clean_lines("") == ()


def test_a_long_line_is_cut_and_says_so() -> None:
    assert clean_log("x" * 50, limit=10) == "x" * 9 + "…"
    assert clean_line("x" * 10, limit=10) == "x" * 10
    assert clean_log("ü" * 11, limit=10) == "ü" * 9 + "…"


@given(st.text(alphabet=st.characters(codec=None), max_size=80))
def test_no_text_gets_through_unprintable(text: str) -> None:
    for shown in (clean_line(text), clean_log(text), clean_name(text)):
        assert shown.isprintable()
        assert len(shown) <= 1000


@pytest.mark.parametrize("unit", ["\x1b[", "\x1b]", "\r", "\r\x1b[K", "\b", "a\b", "\x1b[0;", "\u202e", "\x90"])
def test_hostile_lines_cost_no_more_than_their_length(unit: str) -> None:
    line = unit * (4_000_000 // len(unit))
    began = time.process_time()
    clean_log(line)
    clean_line(line)
    assert time.process_time() - began < 3
