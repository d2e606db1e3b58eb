"""Patterns of .dockerignore, of --exclude and of COPY's sources."""

from __future__ import annotations

import fnmatch
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.dockerfile.ignore import PatternError, compile_patterns, has_wildcards, match, parse
from platforms.errors import DockerfileError


def paths(column: str) -> list[str]:
    return [path for path in column.split() if path != "∅"]


def cases() -> list[tuple[str, list[str], list[str]]]:
    table = (Path(__file__).parent / "ignore.txt").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in table.splitlines() if line and not line.startswith("# ")]
    return [
        (patterns.strip().replace(",", "\n").replace("␠", " "), paths(excluded), paths(left))
        for patterns, excluded, left in rows
    ]


@pytest.mark.parametrize(("patterns", "excluded", "left"), cases())
def test_patterns(patterns: str, excluded: list[str], left: list[str]) -> None:
    found = parse(patterns)
    assert [path for path in excluded if not found.excludes(path)] == []
    assert [path for path in left if found.excludes(path)] == []


def test_byte_order_mark_line_ends_and_bytes() -> None:
    found = parse("\ufeffa\r\n#b\r\n c \r\n".encode())
    assert [rule.pattern for rule in found.rules] == ["a", "c"]
    assert parse(b"\xe9").excludes(b"\xe9".decode("utf-8", "surrogateescape"))


def test_nothing_excludes_nothing() -> None:
    assert not parse("# only a comment\n")
    assert not parse("").excludes("a")


@pytest.mark.parametrize(
    ("text", "line"), [("a\n!\n", 2), ("[a", 1), ("a\n\n[]", 3), ("a\\", 1), ("[a-]", 1), ("!/", 1)]
)
def test_broken_patterns_name_their_line(text: str, line: int) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(text, "sub/.dockerignore")
    problem = caught.value.problem
    assert problem.where is not None
    assert (problem.where.file, problem.where.line) == ("sub/.dockerignore", line)
    assert problem.remedy


def test_broken_patterns_elsewhere() -> None:
    with pytest.raises(PatternError):
        compile_patterns(["ok", "[a"])
    assert not match("[a", "[a")


def test_a_kept_verdict_is_the_verdict() -> None:
    patterns = parse("*\n!a\na/b\n!a/b/c\n")
    paths = ["a", "a/b", "a/b/c", "a/b/c/d", "a/x", "x", "x/y"]
    alone = [patterns.excludes(path) for path in paths]
    assert alone == [False, True, False, False, False, True, True]
    assert [patterns.excludes(path, True) for path in paths] == alone
    assert [patterns.excludes(path) for path in paths] == alone


@pytest.mark.parametrize(
    ("patterns", "directory", "expected"),
    [
        ("a", "a", False),
        ("a\n!b", "a", False),
        ("a\n!a/b", "a", True),
        ("a\n!a/b/c", "a/b", True),
        ("a\n!a/b/c", "a/x", False),
        ("*\n!a/*", "a", True),
        ("*\n!a/**", "b", False),
        ("*\n!**/x", "b", True),
        ("*\n!a*", "b", True),
        ("*\n!ab", "a", False),
    ],
)
def test_pruning(patterns: str, directory: str, expected: bool) -> None:
    assert parse(patterns).may_contain_included(directory) is expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a", "a", True),
        ("a*", "abc", True),
        ("a*", "a/b", False),
        ("**", "a/b", False),
        ("*/*", "a/b", True),
        ("*", "", True),
        ("a?", "a/", False),
        ("[a-c]", "b", True),
        ("[^a-c]", "b", False),
        ("\\*", "*", True),
        ("\\*", "x", False),
        ("*é", "xé", True),
        ("a", "a/", False),
    ],
)
def test_one_pattern(pattern: str, path: str, expected: bool) -> None:
    assert match(pattern, path) is expected


@pytest.mark.parametrize(
    ("path", "expected"), [("a/b", False), ("a*", True), ("a\\*", False), ("a\\", False), ("[", True)]
)
def test_wildcards(path: str, expected: bool) -> None:
    assert has_wildcards(path) is expected


def test_hostile_patterns_take_no_time() -> None:
    start = time.process_time()
    assert not match("*a" * 40 + "b", "a" * 250)
    assert not parse("**/" * 30 + "*a" * 30 + "b").excludes("a/" * 100 + "a" * 250)
    assert time.process_time() - start < 5


SIMPLE = st.text(alphabet="ab*?", max_size=7)
NAMES = st.text(alphabet="ab", min_size=1, max_size=7)


@given(SIMPLE, NAMES)
def test_within_a_name_stars_mean_what_they_mean_everywhere(pattern: str, name: str) -> None:
    assert match(pattern, name) is fnmatch.fnmatchcase(name, pattern)


PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PATTERN = st.lists(st.sampled_from(["a", "b", "*", "**", "a*", "?b"]), min_size=1, max_size=4).map("/".join)
RULES = st.lists(st.builds("{}{}".format, st.sampled_from(["", "!"]), PATTERN), max_size=4)


@given(RULES, PATHS)
def test_pruning_never_hides_what_an_exception_takes_back(rules: list[str], path: str) -> None:
    patterns = compile_patterns(rules)
    parts = path.split("/")
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
    if not patterns.excludes(path):
        assert all(not patterns.excludes(top) or patterns.may_contain_included(top) for top in above)


@given(st.text(max_size=60), PATHS)
def test_any_text_is_read_or_refused(text: str, path: str) -> None:
    try:
        parse(text).excludes(path)
    except DockerfileError as error:
        assert error.problem.where is not None
