"""Words as the Dockerfile reference ("Environment replacement") and BuildKit's lexer expand them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.dockerfile import shellpattern
from executor.dockerfile.words import BODY, DEPTH_LIMIT, SIZE_LIMIT, RecordingMapping, Style, expand, expand_words
from platforms.errors import DockerfileError

ENV = {"A": "foo", "E": "", "P": "/usr/local/bin", "N": "a*b", "Q": 'it\'s "so"', "W": "two  words"}


def cases() -> list[tuple[str, str]]:
    table = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8")
    rows = [line.rsplit(" | ", 1) for line in table.splitlines() if line and not line.startswith("#")]
    return [
        (text.rstrip(" ").replace("␠", " ").replace("⇥", "\t"), expected.replace("∅", "")) for text, expected in rows
    ]


@pytest.mark.parametrize(("text", "expected"), cases())
def test_words(text: str, expected: str) -> None:
    if not expected.startswith("!"):
        assert expand(text, ENV) == expected
        return
    with pytest.raises(DockerfileError) as caught:
        expand(text, ENV)
    assert caught.value.problem.what.endswith(f": {expected[1:]}")
    assert caught.value.problem.remedy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b", ("a", "b")),
        ("  a\t b ", ("a", "b")),
        ("'a b' c", ("a b", "c")),
        ('"a b"c d', ("a bc", "d")),
        (r"a\ b c", ("a b", "c")),
        ("$W", ("two", "words")),
        ('"$W"', ("two  words",)),
        ("x$W", ("xtwo", "words")),
        ("$U '' \"\" $E", ()),
        ("80 ${U:-81 82}/tcp", ("80", "81", "82/tcp")),
        ("", ()),
        ("<< EOF x", ("<< EOF", "x")),
    ],
)
def test_division_into_words(text: str, words: tuple[str, ...]) -> None:
    assert expand_words(text, ENV) == words


def test_escape_directive_changes_the_escape_and_nothing_else() -> None:
    assert expand(r"c:\dir\`$A `$A ${U:-`}}", ENV, escape="`") == r"c:\dir\$A $A }"
    assert expand(r'"`"q`""', ENV, escape="`") == '"q"'


def test_here_document_bodies_keep_their_quotes() -> None:
    assert expand("it's \"$A\" '$A' \\$A ${U:-'x'}", ENV, style=BODY) == "it's \"foo\" 'foo' $A 'x'"


def test_a_style_that_keeps_quotes_escapes_and_unset_names() -> None:
    style = Style(keep_quotes=True, keep_escapes=True, keep_unset=True)
    text = r"""'$A' "$A" \$A $U ${U} ${U:-x} ${U/a/b}"""
    assert expand(text, ENV, style=style) == r"""'$A' "foo" \$A $U ${U} ${U:-x} ${U/a/b}"""


def test_names_that_were_used_and_missed() -> None:
    env = RecordingMapping(ENV)
    expand("$A ${U:-$V} ${E:+$X} '$Y' \\$Z", env)
    assert [*env.used] == ["A", "E"]
    assert [*env.missing] == ["V", "U", "X"]  # alternatives are looked up whether they are taken or not


def test_nesting_and_growth_have_limits() -> None:
    deep = "${U:-" * DEPTH_LIMIT + "x" + "}" * DEPTH_LIMIT
    assert expand(deep, ENV) == "x"
    with pytest.raises(DockerfileError, match="too deep"):
        expand("${U:-" + deep + "}", ENV)
    with pytest.raises(DockerfileError, match="more than 16 MiB"):
        expand("$B$B", {"B": "x" * (SIZE_LIMIT // 2 + 1)})


@pytest.mark.parametrize(
    "text",
    ["${P" + "#*a" * 1 + "*a" * 3000 + "}", "${P##" + "*a" * 3000 + "b}", "${P//" + "*a" * 3000 + "b/x}", "$P" * 5000],
)
def test_hostile_patterns_take_no_time(text: str) -> None:
    start = time.process_time()
    expand(text, {"P": "a" * 3000})
    assert time.process_time() - start < 5


@given(st.text(alphabet="abcXYZ019._- /:=,\n", max_size=50))
def test_text_without_anything_special_stays_as_it_is(text: str) -> None:
    assert expand(text, ENV) == text
    assert expand_words(text, ENV) == tuple(text.split())


@given(st.text(max_size=40), st.sampled_from("\\`"))
def test_any_text_expands_or_is_refused(text: str, escape: str) -> None:
    try:
        expand(text, ENV, escape=escape)
        expand_words(text, ENV, escape=escape)
    except DockerfileError as error:
        assert error.problem.what.startswith("failed to process ")


@given(st.text(max_size=40))
def test_single_quotes_keep_everything(text: str) -> None:
    inner = text.replace("'", "")
    assert expand(f"'{inner}'", ENV) == inner


PATTERNS = st.text(alphabet="ab*?", max_size=6)
VALUES = st.text(alphabet="ab\n", max_size=8)


@given(PATTERNS, VALUES)
def test_prefixes_and_suffixes_against_every_way_to_cut(pattern: str, value: str) -> None:
    form = re.compile(re.escape(pattern).replace(r"\*", "[^\n]*").replace(r"\?", "[^\n]"))
    heads = [cut for cut in range(len(value) + 1) if form.fullmatch(value[:cut])]
    tails = [cut for cut in range(len(value) + 1) if form.fullmatch(value[cut:])]
    assert shellpattern.without_prefix(pattern, value, longest=False) == value[min(heads, default=0) :]
    assert shellpattern.without_prefix(pattern, value, longest=True) == value[max(heads, default=0) :]
    assert shellpattern.without_suffix(pattern, value, longest=False) == value[: max(tails, default=len(value))]
    assert shellpattern.without_suffix(pattern, value, longest=True) == value[: min(tails, default=len(value))]


@given(PATTERNS, VALUES)
def test_replacement_takes_the_leftmost_longest_match(pattern: str, value: str) -> None:
    form = re.compile(re.escape(pattern).replace(r"\*", "[^\n]*").replace(r"\?", "[^\n]"))
    spans = [(at, end) for at in range(len(value) + 1) for end in range(len(value), at - 1, -1)]
    first = next(((at, end) for at, end in spans if form.fullmatch(value[at:end])), None)
    expected = value if first is None else value[: first[0]] + "R" + value[first[1] :]
    assert shellpattern.replaced(pattern, value, "R") == expected


@pytest.mark.parametrize(("text", "value"), [("${A%/\\}", "a/b"), ("${A%%*\\}", "a/b/")])
def test_a_backslash_that_ends_a_suffix_protects_what_is_before_it(text: str, value: str) -> None:
    assert expand(text, {"A": "a/b/"}, escape="`") == value
