"""A second pair of eyes: dockerfile-parse reads the same file, and whoever disagrees is named.

The line structure that a build uses is that of ``lines``: dockerfile-parse silently skips what its pattern does not
match, takes the body of a here-document for instructions, and continues a line that ends in two backslashes, so it must
never decide what is built. But it is what many tools of the field read Dockerfiles with. So the file is handed to it
with everything that it does not model blanked out (here-documents' bodies, the byte order mark), and its instructions
are compared with ours, line by line: agreement is a proof, by other people's code, that no line was lost; disagreement
is worth a warning, as such a file means different things to different tools.

The library costs some milliseconds to import and may only be asked about files of ordinary size (it is quadratic in
continued lines), so builds do not wait for it: build checks do. It is given the bytes in memory and writes nothing.
"""

from __future__ import annotations

from io import BytesIO
from typing import Final

from executor.dockerfile.lines import Statement, location
from executor.dockerfile.rules import READ_DIFFERENTLY_ELSEWHERE, Violation
from executor.dockerfile.stages import Dockerfile

SIZE_LIMIT: Final = 1 << 18
"""Bytes of a file that the library is asked about."""

_NOTHING: Final = "nothing"


def differences(dockerfile: Dockerfile) -> tuple[Violation, ...]:
    """Where dockerfile-parse sees other instructions than we do: the first such place, as the rest follows from it."""
    text = plain(dockerfile)
    if len(text) > SIZE_LIMIT:
        return ()
    ours = {statement.location.line: statement.keyword.upper() for statement in dockerfile.statements}
    theirs = seen(text)
    for line in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(line, _NOTHING), theirs.get(line, _NOTHING)
        if here != there:
            place = location(dockerfile.source, dockerfile.name, line, line)
            return (READ_DIFFERENTLY_ELSEWHERE.at(place, there, "part of another line" if here == _NOTHING else here),)
    return ()


def plain(dockerfile: Dockerfile) -> bytes:
    """The file, line for line, without what the library does not model and other rules already speak of."""
    lines = list(dockerfile.source)
    if dockerfile.escape != "\\":
        lines[0] = f"# escape={dockerfile.escape}"
    for statement in dockerfile.statements:
        first, last = statement.location.line, statement.location.end_line
        bodies = last - body_lines(statement)
        for index in range(first, last):  # the lines after the first, counted from 0
            if index >= bodies:
                lines[index] = ""
            elif not lines[index].strip():
                lines[index] = "#"
    return "\n".join(lines).encode("utf-8", "replace") + b"\n"


def body_lines(statement: Statement) -> int:
    """The number of lines that the here-documents of ``statement`` take up, their ends included."""
    return sum(heredoc.content.count("\n") + 1 for heredoc in statement.heredocs)


def seen(text: bytes) -> dict[int, str]:
    """What dockerfile-parse sees: the instruction that begins at each line, in upper case."""
    from dockerfile_parse import DockerfileParser
    from dockerfile_parse.constants import COMMENT_INSTRUCTION

    structure = DockerfileParser(fileobj=BytesIO(text)).structure
    return {
        entry["startline"] + 1: entry["instruction"]
        for entry in structure
        if entry["instruction"] != COMMENT_INSTRUCTION
    }
