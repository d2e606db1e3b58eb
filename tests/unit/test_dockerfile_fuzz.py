"""Any text is a Dockerfile or is refused with its place, no line of it is lost, and hostile ones cost no time."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.dockerfile import expand, parse
from executor.dockerfile.instructions import KEYWORDS
from executor.dockerfile.lines import read
from platforms.errors import DockerfileError

FLAGS = ["--from=a", "--mount=type=cache,target=/a", "--interval=1s", "--chmod=6", "--link", "--", "--x", "--x='a b'"]
WORDS = ["<<E", "<<-'E'", "E", '["a"]', "[1]", "a=b", "a", "80", "é", "$A", "${A:-", "}", "'", '"', "\\", "`", "#"]
SPACES = (" ", " ", "\t", "\n", "\n", "\n", "\r\n", "# escape=`\n")
PIECES = st.sampled_from((*KEYWORDS, *FLAGS, *WORDS, *SPACES))
SOURCES = st.lists(PIECES, max_size=40).map("".join)


@given(SOURCES | st.text(max_size=80))
def test_any_text_is_read_or_refused(source: str) -> None:
    data = source.encode("utf-8", "surrogatepass")
    try:
        dockerfile = parse(b"FROM scratch\n" + data)
    except DockerfileError as error:
        assert error.problem.where is not None or "NUL" in error.problem.what
        return
    for stage in dockerfile.stages:
        for instruction in stage.instructions:
            try:
                expand(instruction, {"A": "b"}, dockerfile.escape)
            except DockerfileError as error:
                assert error.problem.where == instruction.location


@given(SOURCES)
def test_every_line_is_accounted_for(source: str) -> None:
    try:
        found = read(source.encode())
    except DockerfileError:
        return
    covered = [
        line
        for statement in found.statements
        for line in range(statement.location.line, statement.location.end_line + 1)
    ]
    assert covered == sorted(set(covered)), "no line belongs to two statements"
    for number, line in enumerate(found.physical, 1):
        if number not in covered:
            assert not line.strip() or line.strip().startswith("#"), f"line {number} was lost: {line!r}"


@given(SOURCES)
def test_no_line_is_lost_within_an_instruction(source: str) -> None:
    try:
        found = read(source.encode())
    except DockerfileError:
        return
    for statement in found.statements:
        first, last = statement.location.line, statement.location.end_line
        bodies = [each for heredoc in statement.heredocs for each in (*heredoc.content.split("\n")[:-1], heredoc.name)]
        assert len(bodies) <= last - first
        ends = last - len(bodies)
        assert "".join(_meant(found.physical[first - 1 : ends], found.escape)).strip() in statement.text
        for line, body in zip(found.physical[ends:last], bodies, strict=True):
            assert body.rstrip("\r") in (line, line.lstrip("\t"))


def _meant(lines: tuple[str, ...], escape: str) -> list[str]:
    """What the lines of an instruction say: without comments, blank lines and the characters that continue them."""
    said = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    kept = [line.rstrip(" \t") for line in said]
    return [
        short[:-1] if short.endswith(escape) and not short.endswith(escape * 2) else line
        for short, line in zip(kept, said, strict=True)
    ]


@pytest.mark.parametrize(
    "source",
    [
        b"FROM a\n" + b"RUN x\n" * 50_000,
        b"FROM a\nRUN " + b"x \\\n" * 100_000,
        b"FROM a\nRUN <<E\n" + b"x\n" * 200_000 + b"E\n",
        b"FROM a\nRUN " + b"<<E " * 10_000 + b"\n" + b"E\n" * 10_000,
        b"FROM a\nENV " + b"a=b " * 15_000,
        b"FROM a\nCMD " + b"[" * 60_000,
        b"FROM a\nRUN " + b"--mount=a=b " * 5_000,
        b"FROM a\nCOPY " + b"a " * 30_000 + b"/b",
        b"# escape" + b" " * 60_000 + b"=x\nFROM a",
        b"FROM a\nRUN <<" + b" " * 60_000 + b"<\n",
        b"FROM a\nHEALTHCHECK --interval=" + b"1" * 60_000 + b"s CMD x",
        b"\\\n" * 100_000 + b"FROM a",
    ],
    ids=lambda source: source[:24].decode(),
)
def test_hostile_files_take_no_time(source: bytes) -> None:
    start = time.process_time()
    try:
        dockerfile = parse(source)
    except DockerfileError:
        pass
    else:
        for instruction in dockerfile.stages[0].instructions[:1]:
            with contextlib.suppress(DockerfileError):
                expand(instruction, {})
    assert time.process_time() - start < 10
